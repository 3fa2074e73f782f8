"""Wire messages -> broker, confirmed. Knows kombu and nothing of the database."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from celery import Celery

from outbox.confirms import ConfirmingLink
from outbox.exceptions import BrokerUnavailable, describe
from outbox.links import Link, raise_if_outage, remaining
from outbox.outgoing import Outgoing, Published

logger = logging.getLogger(__name__)


class Publisher:
    """One connection to the broker, kept between batches and replaced when it fails.

    On AMQP a batch is published with ``mandatory`` and its confirms are collected while it goes
    out. Where kombu has a pipelined batch (Redis, Valkey) that is used; elsewhere messages go one
    by one. Not to be shared between threads.
    """

    def __init__(self, app: Celery, write_timeout: float = 20) -> None:
        """``write_timeout``: seconds after which a broker that hangs is given up."""
        self.app = app
        self.write_timeout = write_timeout
        self._link: Link | None = None

    def connect(self) -> None:
        """Have a connection. Raises ``BrokerUnavailable`` when a fresh one fails."""
        self._connected()

    def close(self) -> None:
        """Drop the connection, if there is one, without waiting for the broker."""
        link, self._link = self._link, None
        if link is not None:
            with suppress(Exception):
                link.connection.collect(socket_timeout=1)

    def publish(self, messages: Sequence[Outgoing], timeout: float) -> Published:
        """Put the messages on their way; ``await_confirms()`` must follow.

        Another batch may be published in between. ``timeout``: seconds until the broker must have
        had its say on each message.
        """
        result = Published(messages, time.monotonic() + timeout)
        with self._noting_outage(result):
            self._step(result, messages)
        return result

    def await_confirms(self, result: Published) -> None:
        """Wait for the broker's word on each message of the batch.

        A failure in the middle is traced to its message: what was on its way without a confirm
        goes out again one at a time, and the message that alone breaks a fresh connection is
        refused. The others go out. When a fresh connection fails, or the time is up, the result
        says ``unavailable`` and no message is at fault.
        """
        with self._noting_outage(result):
            while not result.unavailable and (unfinished := result.unfinished()):
                remaining(result.deadline)
                self._step(result, unfinished)

    def _step(self, result: Published, unfinished: Sequence[Outgoing]) -> None:
        suspect = None
        try:
            link = self._connected()
            if result.link is link:
                link.drain(result.in_doubt, result.deadline)
            elif not result.in_doubt:
                result.link = link
                link.publish(unfinished, result)
            else:
                # Nothing else may be under way, or it could be to blame.
                link.drain(link.unconfirmed, result.deadline)
                suspect = next(iter(result.in_doubt.values()))
                link.publish([suspect], result)
                link.drain(link.unconfirmed, result.deadline)
        except BrokerUnavailable:
            raise
        except Exception as error:
            self._reconnect(error)
            if suspect is not None:
                result.refuse(suspect.id, describe(error))

    @contextmanager
    def _noting_outage(self, result: Published) -> Iterator[None]:
        try:
            yield
        except BrokerUnavailable as error:
            result.unavailable = str(error)
            self.close()

    def is_empty(self, queue: str) -> bool:
        """Tell whether no message waits in the queue; one that is missing is empty.

        What a worker has already taken does not count. Raises ``BrokerUnavailable``.
        """
        try:
            link = self._connected()
            # Or an error of a publish under way would come up.
            link.drain(link.unconfirmed, time.monotonic() + self.write_timeout)
            is_empty = link.waiting(queue) == 0
        except BrokerUnavailable:
            raise
        except Exception as error:
            self.close()
            raise BrokerUnavailable(
                f"could not look at queue {queue!r}: {describe(error)}"
            ) from error
        if is_empty:
            # It may have been forgotten, and then with its bindings. A connection remembers what
            # has been declared on it; a fresh one declares it again.
            self.close()
        return is_empty

    def _connected(self) -> Link:
        if self._link is None:
            self._link = _connect(self.app, self.write_timeout)
        return self._link

    def _reconnect(self, error: Exception) -> None:
        """Tell a message's failure from an outage: in an outage a fresh connection fails too."""
        logger.debug("the connection to the broker broke: %s", error, exc_info=error)
        raise_if_outage(error)
        self.close()
        self.connect()


def _connect(app: Celery, write_timeout: float) -> Link:
    # A connection that waits for each single confirm would make pipelining pointless.
    options: dict[str, Any] = {"confirm_publish": False, "write_timeout": write_timeout}
    if "read_timeout" not in (app.conf.broker_transport_options or {}):
        options["read_timeout"] = write_timeout / 2  # for the answer to a declaration
    connection = app.connection_for_write(transport_options=options)
    # Twice, or once for each of several brokers.
    connection.connect_timeout = min(connection.connect_timeout or math.inf, write_timeout / 4)
    own_options: Any = connection.transport_options
    if connection.transport.driver_type == "amqp":
        own_options["on_blocked"] = _on_blocked
    if connection.transport.driver_type == "redis":
        # For each answer; one that does not come is followed by two tries of a fresh connection.
        own_options.setdefault("socket_timeout", write_timeout / 4)
    try:
        connection.ensure_connection(
            max_retries=max(1, len(connection.alt)), interval_start=0, interval_step=0
        )
        if connection.transport.driver_type == "amqp":
            return ConfirmingLink(app, connection)
        return Link(app, connection)
    except Exception as error:
        with suppress(Exception):
            connection.collect(socket_timeout=1)
        raise BrokerUnavailable(
            f"no connection to the broker at {connection.as_uri()}: {describe(error)}"
        ) from error


def _on_blocked(reason: str) -> None:
    """RabbitMQ tells that it stops to read from this connection (connection.blocked)."""
    raise BrokerUnavailable("the broker takes no messages: it is short of memory or disk")

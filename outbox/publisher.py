"""Wire messages -> broker, confirmed. Knows kombu and nothing of the database."""

from __future__ import annotations

import logging
import math
import re
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from celery import Celery
from kombu import Connection, Exchange, Producer

from outbox.exceptions import BrokerUnavailable

logger = logging.getLogger(__name__)

# Messages that may be on their way without a confirm, and half as many of a batch that is alone.
# When a message makes the broker close the channel, only these are in doubt and go out again; a
# larger window is hardly faster.
WINDOW = 500
# Linux only: what is written goes out in full segments, and the rest when it is switched off.
TCP_CORK: int | None = getattr(socket, "TCP_CORK", None)

# States of a Redis or Valkey server in which it refuses every write, whatever the message.
# redis-py has a class of its own for some of them; a pipeline's error names the command first.
REDIS_OUTAGE = re.compile(
    r"(OutOfMemory|ReadOnly|ClusterDown|MasterDown|BusyLoading)Error: "
    r"|ResponseError: (.* caused error: )?(MISCONF|NOREPLICAS) ",
    re.DOTALL,
)


class Outgoing(NamedTuple):
    """A message on its way: what the row holds, with what is made at the publish."""

    id: UUID
    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    exchange: str
    routing_key: str
    queue: str
    expiration: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The error of one message. ``permanent``: another attempt would end the same way."""

    error: str
    permanent: bool = False


@dataclass(slots=True)
class Published:
    """What became of a batch. A message in neither collection is still to be published.

    ``deadline``: by the monotonic clock, in seconds. ``unavailable`` says why the broker took no
    more, when it did not.
    """

    messages: Sequence[Outgoing] = ()
    deadline: float = math.inf
    confirmed: set[UUID] = field(default_factory=set)
    refused: dict[UUID, Refused] = field(default_factory=dict)
    unavailable: str = ""
    # Sent without a word from the broker so far.
    in_doubt: dict[UUID, Outgoing] = field(default_factory=dict)
    # The connection on which they went out. On another one nobody waits for their confirms.
    link: _Link | None = None

    def confirm(self, id: UUID) -> None:
        del self.in_doubt[id]
        self.confirmed.add(id)

    def refuse(self, id: UUID, error: str, permanent: bool = False) -> None:
        self.in_doubt.pop(id, None)
        self.refused[id] = Refused(error, permanent)

    def unfinished(self) -> list[Outgoing]:
        if len(self.confirmed) == len(self.messages):
            return []
        ended = self.confirmed | self.refused.keys()
        return [message for message in self.messages if message.id not in ended]


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
        self._link: _Link | None = None

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
                _remaining(result.deadline)
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
                result.refuse(suspect.id, _describe(error))

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
                f"could not look at queue {queue!r}: {_describe(error)}"
            ) from error
        if is_empty:
            # It may have been forgotten, and then with its bindings. A connection remembers what
            # has been declared on it; a fresh one declares it again.
            self.close()
        return is_empty

    def _connected(self) -> _Link:
        if self._link is None:
            self._link = _connect(self.app, self.write_timeout)
        return self._link

    def _reconnect(self, error: Exception) -> None:
        """Tell a message's failure from an outage: in an outage a fresh connection fails too."""
        logger.debug("the connection to the broker broke: %s", error, exc_info=error)
        _raise_if_outage(error)
        self.close()
        self.connect()


class _Link:
    """A connection with a producer on it. This one publishes one by one, or in kombu's batch."""

    # What is on its way by its delivery tag, oldest first.
    unconfirmed: Mapping[int, tuple[UUID, Published]] = MappingProxyType({})

    def __init__(self, app: Celery, connection: Connection) -> None:
        self.app = app
        self.connection = connection
        self.channel: Any = connection.channel()
        self.producer: Any = Producer(self.channel, auto_declare=False)
        self.channel_errors: Any = connection.channel_errors
        self._declared: dict[tuple[str, str], str] = {}

    def publish(self, messages: Sequence[Outgoing], result: Published) -> None:
        sendable = self._declared_of(messages, result)
        if getattr(self.producer, "supports_batch_publish", False):
            result.in_doubt |= {m.id: m for m in sendable}
            with self.producer.batch():
                for message in sendable:
                    self._send(message)
            for message in sendable:
                result.confirm(message.id)
        else:
            for message in sendable:
                result.in_doubt[message.id] = message
                self._send(message)
                result.confirm(message.id)

    def drain(self, waiting: Collection[object], deadline: float) -> None:
        """Take what the broker says until ``waiting`` is empty."""

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in the queue."""
        try:
            with self._own_channel() as channel:
                declared: Any = self.app.amqp.queues[queue](channel).queue_declare(passive=True)
        except (KeyError, *self.channel_errors):
            return 0
        return int(declared.message_count)

    def _send(self, message: Outgoing, **options: Any) -> None:
        self.producer.publish(
            message.body,
            exchange=message.exchange,
            routing_key=message.routing_key,
            headers=message.headers,
            expiration=message.expiration,
            **message.properties,
            **options,
        )

    def _declared_of(self, messages: Sequence[Outgoing], result: Published) -> list[Outgoing]:
        """Declare what the messages need; refuse those for which that is impossible."""
        # A problem may be mended on the broker: look again with each batch.
        self._declared = {target: "" for target, problem in self._declared.items() if not problem}
        if not self._declared.keys() >= {(m.queue, m.exchange) for m in messages}:
            # First of all: an error of a publish under way would come up in a declaration, and
            # py-amqp opens the channel again without confirms.
            self.drain(self.unconfirmed, result.deadline)
        return [m for m in messages if self._declare(m, result)]

    def _declare(self, message: Outgoing, result: Published) -> bool:
        """Declare what Celery would declare for this message, once per connection."""
        target = (message.queue, message.exchange)
        if target not in self._declared:
            try:
                self._declare_target(*target)
            except KeyError:
                self._declared[target] = (
                    f"the queue {message.queue!r} is not in task_queues of this relay's settings"
                )
            except self.channel_errors as error:
                _raise_if_outage(error)
                self._declared[target] = _describe(error)
            else:
                self._declared[target] = ""
        problem = self._declared[target]
        if problem:
            result.refuse(message.id, problem)
        return not problem

    def _declare_target(self, queue_name: str, exchange: str) -> None:
        """Passively first: a channel survives a mismatch that way, and a publish does not."""
        queue: Any = self.app.amqp.queues[queue_name] if queue_name else None
        if queue is not None and not queue.no_declare:
            if exchange:
                self._ensure(queue.exchange)
            self._ensure(queue)
            if exchange:
                self._bind(queue)
        if exchange and (queue is None or exchange != queue.exchange.name):
            self._require_exchange(exchange)

    def _require_exchange(self, exchange: str) -> None:
        """Raise if an exchange that nothing declares is missing. Brokers of Redis' kind can't tell:
        there each process knows only the exchanges that it has declared itself."""

    def _bind(self, queue: Any) -> None:
        with self._own_channel() as channel:
            bound = queue(channel)
            if queue.exchange.name:
                bound.queue_bind()
            for binding in queue.bindings:
                binding.declare(channel)
                binding.bind(bound)

    def _own_channel(self) -> closing[Any]:
        """A channel for a declaration: when that fails, the broker closes it."""
        channel: Any = self.connection.channel()
        return closing(channel)

    def _ensure(self, entity: Any) -> None:
        declare = "queue_declare" if hasattr(entity, "queue_declare") else "declare"
        try:
            with self._own_channel() as channel:
                getattr(entity(channel), declare)(passive=True)
        except self.channel_errors:
            with self._own_channel() as channel:
                entity(channel).declare()


class _ConfirmingLink(_Link):
    """AMQP: publish with pipelined confirms, and hear of what cannot be routed."""

    def __init__(self, app: Celery, connection: Connection) -> None:
        super().__init__(app, connection)
        self.channel.confirm_select()
        self.channel.events["basic_ack"].add(self._on_ack)
        self.channel.events["basic_nack"].add(self._on_nack)
        self.channel.events["basic_return"].add(self._on_return)
        self.unconfirmed: dict[int, tuple[UUID, Published]] = {}
        self._last_tag = 0
        self._returned: dict[str, str] = {}

    def publish(self, messages: Sequence[Outgoing], result: Published) -> None:
        sendable = self._declared_of(messages, result)
        window = WINDOW if self.unconfirmed else WINDOW // 2
        with self._in_full_segments():
            for message in sendable:
                while len(self.unconfirmed) >= window:
                    self._drain_events(result.deadline)
                self._publish_unconfirmed(message, result)

    def drain(self, waiting: Collection[object], deadline: float) -> None:
        while waiting:
            self._drain_events(deadline)

    def _require_exchange(self, exchange: str) -> None:
        with self._own_channel() as channel:
            Exchange(exchange, passive=True)(channel).declare()

    @contextmanager
    def _in_full_segments(self) -> Iterator[None]:
        """A segment for each message costs the broker more than the message itself."""
        sock: socket.socket = self.channel.connection.sock
        if TCP_CORK is None:
            yield
            return
        sock.setsockopt(socket.IPPROTO_TCP, TCP_CORK, 1)
        try:
            yield
        finally:
            with suppress(OSError):  # closed meanwhile
                sock.setsockopt(socket.IPPROTO_TCP, TCP_CORK, 0)

    def _send(self, message: Outgoing, **options: Any) -> None:
        # What Producer.publish() does with a message that is serialized already, and no more.
        properties = dict(message.properties)
        if message.expiration is not None:
            properties["expiration"] = str(int(message.expiration * 1000))
        prepared = self.channel.prepare_message(
            message.body,
            properties.pop("priority", None),
            properties.pop("content_type", None),
            properties.pop("content_encoding", None),
            message.headers,
            properties,
        )
        self.channel.basic_publish(
            prepared, exchange=message.exchange, routing_key=message.routing_key, **options
        )

    def _publish_unconfirmed(self, message: Outgoing, result: Published) -> None:
        tag = self._last_tag + 1
        result.in_doubt[message.id] = message
        self.unconfirmed[tag] = (message.id, result)
        try:
            self._send(message, mandatory=True)
        except Exception as error:
            # The broker's errors come up in whichever call is under way. What is left is this
            # message's own: it could not be encoded, and nothing of it was sent.
            recoverable = self.connection.recoverable_connection_errors
            broken = (*self.channel_errors, *recoverable, BrokerUnavailable)
            if isinstance(error, broken) or not self.connection.connected:
                raise
            del self.unconfirmed[tag]
            result.refuse(message.id, _describe(error), permanent=True)
        else:
            self._last_tag = tag

    def _drain_events(self, deadline: float) -> None:
        try:
            self.connection.drain_events(timeout=_remaining(deadline))
        except TimeoutError as error:
            raise _no_confirms() from error

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for id, result in self._settled(tag, multiple):
            if self._returned and (problem := self._returned.pop(str(id), None)):
                self._declared.clear()
                result.refuse(id, problem)
            else:
                result.confirm(id)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for id, result in self._settled(tag, multiple):
            result.refuse(id, "the broker refused the message (basic.nack): is a queue full?")

    def _settled(self, tag: int, multiple: bool) -> list[tuple[UUID, Published]]:
        tags = [tag]
        if multiple:
            tags = list(takewhile(lambda unconfirmed: unconfirmed <= tag, self.unconfirmed))
        return [self.unconfirmed.pop(tag) for tag in tags]

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        # A returned message is confirmed as well, afterwards. Task protocol 1 has no headers.
        id = (message.headers or {}).get("id") or message.properties["correlation_id"]
        self._returned[id] = (
            f"the broker could not route it to any queue (exchange {exchange!r}, routing key "
            f"{routing_key!r}). Declare the queue and its binding, then retry the message."
        )


def _connect(app: Celery, write_timeout: float) -> _Link:
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
            return _ConfirmingLink(app, connection)
        return _Link(app, connection)
    except Exception as error:
        with suppress(Exception):
            connection.collect(socket_timeout=1)
        raise BrokerUnavailable(
            f"no connection to the broker at {connection.as_uri()}: {_describe(error)}"
        ) from error


def _on_blocked(reason: str) -> None:
    """RabbitMQ tells that it stops to read from this connection (connection.blocked)."""
    raise BrokerUnavailable("the broker takes no messages: it is short of memory or disk")


def _raise_if_outage(error: BaseException) -> None:
    reason = _describe(error.__cause__ or error)
    if REDIS_OUTAGE.match(reason):
        raise BrokerUnavailable(f"the broker refuses every write: {reason}") from error


def _remaining(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise _no_confirms()
    return seconds


def _no_confirms() -> BrokerUnavailable:
    return BrokerUnavailable("the broker is connected but did not confirm the messages in time")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"

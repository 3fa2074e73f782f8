"""AMQP: messages are published with pipelined confirms, and what cannot be routed comes back."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any
from uuid import UUID

from celery import Celery
from kombu import Connection, Exchange

from outbox.exceptions import BrokerUnavailable, describe
from outbox.links import Link, no_confirms, remaining
from outbox.outgoing import Outgoing, Published

# Messages that may be on their way without a confirm, and half as many of a batch that is alone.
# When a message makes the broker close the channel, only these are in doubt and go out again; a
# larger window is hardly faster.
WINDOW = 500
# Seconds. RabbitMQ closes the channel on more than ten years; the worker looks at the header too.
LONGEST_EXPIRATION = 10 * 365 * 86_400
# Linux only: what is written goes out in full segments, and the rest when it is switched off.
TCP_CORK: int | None = getattr(socket, "TCP_CORK", None)


class ConfirmingLink(Link):
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
        if message.expiration is not None and message.expiration < LONGEST_EXPIRATION:
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
            result.refuse(message.id, describe(error), permanent=True)
        else:
            self._last_tag = tag

    def _drain_events(self, deadline: float) -> None:
        try:
            self.connection.drain_events(timeout=remaining(deadline))
        except TimeoutError as error:
            raise no_confirms() from error

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

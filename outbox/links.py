"""A connection to the broker with a producer on it. Knows kombu and nothing of the database."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType
from typing import Any
from uuid import UUID

from celery import Celery
from kombu import Connection, Producer

from outbox.exceptions import BrokerUnavailable, describe
from outbox.outgoing import Outgoing, Published

# States of a Redis or Valkey server in which it refuses every write, whatever the message.
# redis-py has a class of its own for some of them; a pipeline's error names the command first.
REDIS_OUTAGE = re.compile(
    r"(OutOfMemory|ReadOnly|ClusterDown|MasterDown|BusyLoading)Error: "
    r"|ResponseError: (.* caused error: )?(MISCONF|NOREPLICAS) ",
    re.DOTALL,
)


class Link:
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
                raise_if_outage(error)
                self._declared[target] = describe(error)
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


def raise_if_outage(error: BaseException) -> None:
    reason = describe(error.__cause__ or error)
    if REDIS_OUTAGE.match(reason):
        raise BrokerUnavailable(f"the broker refuses every write: {reason}") from error


def remaining(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise no_confirms()
    return seconds


def no_confirms() -> BrokerUnavailable:
    return BrokerUnavailable("the broker is connected but did not confirm the messages in time")

"""A network that delivers twice, and whether it still has something to deliver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import current_app

from outbox.models import OutboxMessage
from sample_project.demo.models import Delivery

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from kombu import Connection

    from outbox.querysets import OutboxQuerySet


class Network:
    """Publishes each message that a relay has published once more, byte for byte, past the relay.

    That is what a broker, a relay or a network may do at any time. ``repeats`` counts them.
    """

    def __init__(self, since: datetime) -> None:
        self.repeats = 0
        self._since = since
        self._repeated: set[UUID] = set()
        self._connection: Connection = current_app.connection_for_write()
        self._producer = self._connection.Producer(auto_declare=False)

    def repeat(self) -> None:
        """Repeat what was published since the last call."""
        for message in self._published().exclude(pk__in=self._repeated):
            self._publish(message)

    def repeat_single(self) -> int:
        """Repeat what was executed and met no duplicate; return how many messages that were.

        On Redis and Valkey a killed worker takes along what it had popped and not yet noted.
        """
        suppressed = Delivery.objects.filter(
            received_at__gte=self._since, outcome=Delivery.Outcome.SUPPRESSED
        )
        twice = set(suppressed.values_list("message_id", flat=True))
        single = [m for m in self._published().executed() if str(m.pk) not in twice]
        for message in single:
            self._publish(message)
        return len(single)

    def is_quiet(self) -> bool:
        """Whether the broker holds nothing more to deliver, as far as it tells."""
        channel: Any = self._connection.default_channel
        queue: Any = current_app.amqp.queues[current_app.conf.task_default_queue]
        if queue(channel).queue_declare().message_count:
            return False
        if self._connection.transport.driver_type == "redis":
            # What a worker, living or killed, has taken and not acknowledged.
            return not channel.client.hlen(channel.unacked_key)
        return True

    def _published(self) -> OutboxQuerySet:
        messages: OutboxQuerySet = OutboxMessage.objects.filter(
            created_at__gte=self._since,
            published_at__isnull=False,
            task__startswith="sample_project.shop.",
        )
        return messages

    def _publish(self, message: OutboxMessage) -> None:
        published_at = message.published_at and message.published_at.isoformat()
        self._producer.publish(
            bytes(message.body),
            exchange=message.exchange,
            routing_key=message.routing_key,
            headers={**message.headers, "published_at": published_at},
            **message.properties,
        )
        self._repeated.add(message.pk)
        self.repeats += 1

    def close(self) -> None:
        self._connection.release()

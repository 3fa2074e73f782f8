"""A network that delivers twice, and whether it still has something to deliver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import current_app

from outbox.models import OutboxMessage

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from kombu import Connection


class Network:
    """Publishes each message that a relay has published once more, byte for byte, past the relay.

    That is what a broker, a relay or a network may do at any time. Use as a context manager.
    """

    def __init__(self, since: datetime) -> None:
        self._since = since
        self._repeated: set[UUID] = set()
        self._connection: Connection = current_app.connection_for_write()
        self._producer = self._connection.Producer(auto_declare=False)

    def repeat(self) -> None:
        """Repeat what was published since the last call."""
        published = OutboxMessage.objects.filter(
            created_at__gte=self._since, published_at__isnull=False
        )
        for message in published.exclude(pk__in=self._repeated):
            self._producer.publish(
                bytes(message.body),
                exchange=message.exchange,
                routing_key=message.routing_key,
                headers=message.headers,
                **message.properties,
            )
            self._repeated.add(message.pk)

    def is_quiet(self) -> bool:
        """Whether the broker holds nothing more to deliver, as far as it tells."""
        channel = self._connection.default_channel
        queue = channel.queue_declare(current_app.conf.task_default_queue, passive=True)
        if queue.message_count:
            return False
        if self._connection.transport.driver_type == "redis":
            # What a worker, living or killed, has taken and not acknowledged.
            return not channel.client.hlen(channel.unacked_key)
        return True

    def close(self) -> None:
        self._connection.release()

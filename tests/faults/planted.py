"""Bugs on purpose, each of which a named check of the audit must find.

``PLANTED_BUG=<name>`` in the environment of a process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import connections

from idempotency.querysets import IdempotencyKeyQuerySet
from outbox import publisher
from outbox.models import OutboxMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BUG = "PLANTED_BUG"


def marked_before_publish() -> None:
    """The relay commits that it has published, then publishes."""
    publish = publisher.Publisher.publish

    def publish_marked(
        self: publisher.Publisher, messages: Sequence[publisher.Outgoing], *args: Any
    ) -> publisher.Published:
        OutboxMessage.objects.settle([message.id for message in messages])
        connections["default"].connection.commit()
        return publish(self, messages, *args)

    publisher.Publisher.publish = publish_marked  # type: ignore[assignment, method-assign]


def no_confirms() -> None:
    """The relay takes a message that it has written to the socket for a published one."""
    publisher._ConfirmingLink.publish = publisher._Link.publish  # type: ignore[method-assign]


def record_outside() -> None:
    """The guard writes its record in another transaction than the effect's."""
    complete = IdempotencyKeyQuerySet.complete

    def complete_outside(self: IdempotencyKeyQuerySet, *args: Any) -> Any:
        connections[self.db].connection.commit()
        return complete(self, *args)

    IdempotencyKeyQuerySet.complete = complete_outside  # type: ignore[assignment, method-assign]


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug for bug in (marked_before_publish, no_confirms, record_outside)
}

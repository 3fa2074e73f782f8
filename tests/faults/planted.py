"""Bugs on purpose, each of which a named check of the audit must find.

``PLANTED_BUG=<name>`` in the environment of a process.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import connections

from idempotency.querysets import IdempotencyKeyQuerySet
from outbox import publisher
from outbox.models import OutboxMessage
from outbox.querysets import OutboxQuerySet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idempotency.execution import Operation

BUG = "PLANTED_BUG"
FORGOTTEN_AFTER = timedelta(seconds=1)


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


def cursor_polling() -> None:
    """The relay looks for ids beyond the last that it has seen. They are given before commit."""
    claim = OutboxQuerySet.claim
    last = UUID(int=0)

    def claim_beyond(self: OutboxQuerySet, *args: Any) -> Any:
        nonlocal last
        claimed = [message for message in claim(self, *args) if message.id > last]
        last = max([last, *(message.id for message in claimed)])
        return claimed

    OutboxQuerySet.claim = claim_beyond  # type: ignore[method-assign, assignment]


def short_window() -> None:
    """Keys are forgotten sooner than deliveries are refused."""
    complete = IdempotencyKeyQuerySet.complete

    def complete_shortly(self: IdempotencyKeyQuerySet, operation: Operation, *args: Any) -> Any:
        return complete(self, replace(operation, ttl=FORGOTTEN_AFTER), *args)

    IdempotencyKeyQuerySet.complete = complete_shortly  # type: ignore[method-assign, assignment]


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (marked_before_publish, no_confirms, record_outside, cursor_polling, short_window)
}

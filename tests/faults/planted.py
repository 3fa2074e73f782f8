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
from outbox import relay_querysets
from outbox.confirms import ConfirmingLink
from outbox.outgoing import Published
from outbox.querysets import OutboxQuerySet

if TYPE_CHECKING:
    from collections.abc import Callable

    from idempotency.execution import Operation
    from outbox.relay_querysets import ClaimedMessage

BUG = "PLANTED_BUG"
FORGOTTEN_AFTER = timedelta(seconds=1)


def marked_before_publish() -> None:
    """The relay commits that it has published, then publishes."""
    claim = OutboxQuerySet.claim

    def claim_marked(self: OutboxQuerySet, *args: Any) -> list[ClaimedMessage]:
        claimed = claim(self, *args)
        self.settle([message.id for message in claimed])
        connections[self.db].connection.commit()
        return claimed

    OutboxQuerySet.claim = claim_marked  # type: ignore[method-assign, assignment]


def no_confirms() -> None:
    """The relay takes a message that it has written to the socket for a published one."""
    publish = ConfirmingLink.publish

    def publish_trusting(self: ConfirmingLink, messages: Any, result: Published) -> None:
        publish(self, messages, result)
        for id, its_result in self.unconfirmed.values():
            its_result.confirm(id)
        self.unconfirmed.clear()

    ConfirmingLink.publish = publish_trusting  # type: ignore[method-assign]
    ConfirmingLink._on_ack = lambda *_: None  # type: ignore[method-assign]


def record_outside() -> None:
    """The guard writes its record in another transaction than the effect's."""
    complete = IdempotencyKeyQuerySet.complete

    def complete_outside(self: IdempotencyKeyQuerySet, *args: Any, **options: Any) -> Any:
        connections[self.db].connection.commit()
        return complete(self, *args, **options)

    IdempotencyKeyQuerySet.complete = complete_outside  # type: ignore[method-assign]


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

    def complete_shortly(
        self: IdempotencyKeyQuerySet, operation: Operation, *args: Any, **options: Any
    ) -> Any:
        return complete(self, replace(operation, ttl=FORGOTTEN_AFTER), *args, **options)

    IdempotencyKeyQuerySet.complete = complete_shortly  # type: ignore[method-assign]


def ordering_gate_removed() -> None:
    """The relay publishes what is due, whether it is its turn or not."""
    for statement in ("LOOK", "CLAIM"):
        gated = getattr(relay_querysets, statement)
        assert gated.count("NOT blocked AND ") == 1
        setattr(relay_querysets, statement, gated.replace("NOT blocked AND ", ""))
    # The database refuses to have two messages of a key published: it is not told.
    relay_querysets.SETTLE += " AND NOT blocked"


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        marked_before_publish,
        no_confirms,
        record_outside,
        cursor_polling,
        short_window,
        ordering_gate_removed,
    )
}

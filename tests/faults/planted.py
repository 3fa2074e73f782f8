"""Bugs on purpose, each of which a named check of the audit must find.

``PLANTED_BUG=<name>`` in the environment of a process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import connections, transaction

from idempotency.querysets import IdempotencyKeyQuerySet
from outbox import publisher, relay
from outbox.conf import conf
from outbox.models import OutboxMessage

if TYPE_CHECKING:
    from collections.abc import Callable

BUG = "PLANTED_BUG"


def marked_before_publish() -> None:
    """The relay commits that it has published, then publishes."""

    def run_once(self: relay.Relay) -> relay.RelayResult:
        self.publisher.connect()
        messages = OutboxMessage.objects.using(self.using)
        with transaction.atomic(using=self.using):
            claim = messages.claim(conf.BATCH_SIZE, conf.BATCH_BYTES)
            messages.settle([message.id for message in claim])
        if claim:
            readable, _ = relay._outgoing(claim, self.using)
            self.publisher.publish(readable, 10)
        return relay.RelayResult(published=len(claim))

    relay.Relay.run_once = run_once  # type: ignore[method-assign]


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

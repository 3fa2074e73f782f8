"""Messages in any state, written as the project writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.db import connection, transaction

from outbox.models import OutboxMessage
from tests.project.tasks import record

MOMENT = datetime(2026, 3, 5, 14, 30, tzinfo=UTC)
TIMES: dict[str, dict[str, Any]] = {
    "pending": {},
    "published": {"available_at": None, "published_at": MOMENT},
    "executed": {"available_at": None, "published_at": MOMENT, "executed_at": MOMENT},
    "failed": {"available_at": None, "published_at": MOMENT},
    "expired": {"available_at": None},
    "dead": {"available_at": None},
    "discarded": {"available_at": None},
}


def message(
    status: str = "pending",
    signature: Any = None,
    *,
    key: str | None = None,
    ordering_key: str = "",
    using: str = "default",
    **changes: Any,
) -> OutboxMessage:
    """Enqueue ``signature`` and bring its message to a state, with ``changes`` of its fields."""
    with transaction.atomic(using=using):
        written = OutboxMessage.objects.enqueue(
            signature or record.s("x"), key=key, ordering_key=ordering_key, using=using
        )
    rows = OutboxMessage.objects.using(using).filter(pk=written.pk)
    rows.update(**{"status": status, **TIMES[status], **changes})
    found: OutboxMessage = rows.get()
    return found


def status_of(message: OutboxMessage) -> str:
    message.refresh_from_db()
    return message.status


def empty_table() -> None:
    """Leave nothing of other tests' rows, and take statistics.

    What they rolled back is dead, and still in every index: it would be read, and planned for. An
    ANALYZE that finds no row keeps what an earlier one has found.
    """
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE outbox_outboxmessage, outbox_orderingkey")
        cursor.execute("DELETE FROM pg_statistic WHERE starelid = 'outbox_outboxmessage'::regclass")
        cursor.execute("ANALYZE outbox_outboxmessage")

"""The shop's messages on an ordinary afternoon, one or more of them in each state."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.utils import timezone

from outbox.models import OutboxMessage
from sample_project.shop.tasks import book_payment, write_receipt

CUSTOMERS = ("Ada Nováková", "Bram de Wit", "Chiara Russo", "Dae-jung Kim", "Emeka Obi")
AMOUNTS = (Decimal("47.40"), Decimal("12.50"), Decimal("96.00"), Decimal("7.90"), Decimal("25.00"))
LAST_ORDER = 1041

# What became of the payment of the newest order, the one before it, and so on; receipts are fine.
STATES = {
    0: "pending",
    1: "published",
    3: "dead",
    4: "failed",
    7: "discarded",
    9: "expired",
    12: "dead",
}
REFUSED = (
    "the broker could not route it to any queue (exchange 'shop', routing key 'payments'). "
    "Declare the queue and its binding, then retry the message."
)
GAVE_UP = "Order.DoesNotExist: Order matching query does not exist."


def fill(orders: int = 24) -> None:
    """Write two messages for each order, the last order's first."""
    now = timezone.now()
    for number in range(orders):
        order = LAST_ORDER - number
        customer, amount = CUSTOMERS[number % 5], AMOUNTS[number % 5]
        with transaction.atomic():
            receipt, payment = OutboxMessage.objects.enqueue_many(
                [write_receipt.s(order, customer), book_payment.s(order, amount)],
                keys=[f"receipt:{order}", f"charge:{order}"],
            )
        created_at = now - timedelta(seconds=6 + 37 * number + 3 * number**2)
        _bring_to(receipt, "executed", created_at)
        _bring_to(payment, STATES.get(number, "executed"), created_at)


def _bring_to(message: OutboxMessage, status: str, created_at: datetime) -> None:
    jitter = timedelta(milliseconds=message.pk.int % 300)
    published_at = created_at + timedelta(milliseconds=30) + jitter / 10
    executed_at = published_at + timedelta(milliseconds=140) + jitter
    changes: dict[str, Any] = {"status": status, "created_at": created_at, "available_at": None}
    if status in {"pending", "published"}:
        changes["available_at"] = timezone.now() + timedelta(seconds=25)
    if status in {"published", "executed", "failed"}:
        changes["published_at"] = published_at
    if status == "executed":
        changes["executed_at"] = executed_at
    if status == "expired":
        changes["expires_at"] = created_at + timedelta(minutes=1)
    if status == "failed":
        changes["errors"] = [_error(0, executed_at, GAVE_UP)]
    if status in {"pending", "dead"}:
        attempts = 2 if status == "pending" else 10
        pause = (timezone.now() - created_at) / (attempts + 1)
        changes["attempts"] = attempts
        changes["errors"] = [
            _error(attempt, created_at + attempt * pause, REFUSED)
            for attempt in range(1, attempts + 1)
        ]
    OutboxMessage.objects.filter(pk=message.pk).update(**changes)


def _error(attempt: int, at: datetime, error: str) -> dict[str, Any]:
    return {"at": at.isoformat(), "attempt": attempt, "error": error}

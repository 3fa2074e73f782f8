"""The shop's messages on an ordinary afternoon, in every state: what the admin is looked at with."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.utils import timezone

from outbox.models import OutboxMessage
from sample_project.shop.tasks import book_payment, write_receipt

CUSTOMERS = ("Ada Nováková", "Bram de Wit", "Chiara Russo", "Dae-jung Kim", "Emeka Obi")
PRICES = (Decimal("47.40"), Decimal("12.50"), Decimal("96.00"), Decimal("7.90"), Decimal("25.00"))

UNROUTABLE = (
    "the broker could not route it to any queue (exchange 'shop', routing key 'payments.eu'). "
    "Declare the queue and its binding, then retry the message."
)
TOO_LARGE = "PreconditionFailed: message size 134217741 is larger than configured max size 134217728"


def fill(orders: int = 24) -> dict[str, OutboxMessage]:
    """Write two messages for each order, the newest first; return one message of each state."""
    now = timezone.now()
    shown: dict[str, OutboxMessage] = {}
    for number in range(orders):
        created_at = now - timedelta(seconds=9 + 47 * number + number**3)
        customer, amount = CUSTOMERS[number % 5], PRICES[number % 5]
        order = 1041 - number
        with transaction.atomic():
            receipt, payment = OutboxMessage.objects.enqueue_many(
                [write_receipt.s(order, customer), book_payment.s(order, amount)],
                keys=[f"receipt:{order}", f"charge:{order}"],
            )
        for message, status in ((receipt, "executed"), (payment, STATES.get(number, "executed"))):
            _bring_to(message, status, created_at)
            shown[status] = message
    return shown


STATES = {
    0: "pending",
    1: "published",
    3: "dead",
    6: "failed",
    8: "discarded",
    11: "expired",
    15: "dead",
}


def _bring_to(message: OutboxMessage, status: str, created_at: Any) -> None:
    published_at = created_at + timedelta(milliseconds=31 + message.id.int % 20)
    executed_at = published_at + timedelta(milliseconds=140 + message.id.int % 300)
    changes: dict[str, Any] = {"status": status, "created_at": created_at, "available_at": None}
    if status == "pending":
        changes |= {"available_at": timezone.now() + timedelta(seconds=40), "attempts": 2}
    if status in {"published", "executed", "failed"}:
        changes["published_at"] = published_at
    if status == "executed":
        changes["executed_at"] = executed_at
    if status == "expired":
        changes["expires_at"] = created_at + timedelta(minutes=1)
    refusals = {"pending": 2, "dead": 10}.get(status, 0)
    changes["attempts"] = refusals
    changes["errors"] = [
        {
            "at": (created_at + timedelta(seconds=2**attempt)).isoformat(),
            "attempt": attempt,
            "error": UNROUTABLE,
        }
        for attempt in range(1, refusals + 1)
    ]
    if status == "failed":
        changes["errors"] = [
            {
                "at": executed_at.isoformat(),
                "attempt": 0,
                "error": "IntegrityError: the order is not there any more",
            }
        ]
    OutboxMessage.objects.filter(pk=message.pk).update(**changes)

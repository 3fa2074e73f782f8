"""The audit sees each thing that must not be, and nothing where all is well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.db import transaction
from django.db.models.functions import Now
from django.utils.timezone import now

from outbox.models import OutboxMessage
from tests.faults.ledger import audit, suspects
from tests.project.models import Delivery, Effect, Held, Intent, Settled
from tests.project.tasks import record_once

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

pytestmark = pytest.mark.django_db

EXECUTED = {
    "status": "executed",
    "available_at": None,
    "published_at": Now(),
    "executed_at": Now(),
}


def fulfilled(label: str, ordering_key: str = "") -> UUID:
    """Write what is there when all has gone well; return the message's id."""
    intent = Intent.objects.create(label=label, ordering_key=ordering_key)
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s(label), key=intent.label)
    OutboxMessage.objects.filter(pk=message.pk).update(**EXECUTED)
    Effect.objects.create(label=label)
    Delivery.objects.create(message_id=message.pk, published_at="1")
    id: UUID = message.pk
    return id


def lose(label: str) -> None:
    Effect.objects.filter(label=label).delete()


def double(label: str) -> None:
    Effect.objects.create(label=label)


def stick(label: str) -> None:
    OutboxMessage.objects.filter(key=label).update(status="published", executed_at=None)


def fail(label: str) -> None:
    OutboxMessage.objects.filter(key=label).update(status="failed", executed_at=None)


def drop(label: str) -> None:
    OutboxMessage.objects.filter(key=label).delete()


def take_effect_unintended(label: str) -> None:
    Effect.objects.create(label=f"never committed {label}")


def enqueue_unintended(label: str) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s("x"), key="never committed")
    OutboxMessage.objects.filter(pk=message.pk).update(**EXECUTED)


def refuse(label: str) -> None:
    OutboxMessage.objects.filter(key=label).update(attempts=1)


WRONG: list[tuple[Callable[[str], None], list[str]]] = [
    (lose, ["lost"]),
    (double, ["doubled"]),
    (stick, ["stuck"]),
    (fail, ["stuck"]),
    (drop, ["stuck"]),
    (take_effect_unintended, ["phantom"]),
    (enqueue_unintended, ["phantom"]),
    (refuse, ["blamed"]),
]


def test_nothing_is_wrong_where_all_is_well() -> None:
    for label in ("one", "two"):
        fulfilled(label)
    ledger = audit()
    assert ledger.violations() == []
    assert suspects() == []
    assert (ledger.committed, ledger.executed) == (2, 2)
    assert (ledger.delivered_again, ledger.redelivered, ledger.taken_over) == (0, 0, 0)


@pytest.mark.parametrize(("spoil", "found"), WRONG)
def test_what_is_wrong_is_found_by_its_name(spoil: Callable[[str], None], found: list[str]) -> None:
    for label in ("one", "two"):
        fulfilled(label)
    spoil("two")
    ledger = audit()
    assert ledger.violations() == found
    assert [getattr(ledger, name) for name in found] == [1]
    suspected = [suspect.partition(":")[0] for suspect in suspects()]
    assert suspected == ([] if found[0] in ("phantom", "blamed") else ["two"])


def test_effects_in_another_order_than_their_keys_intents() -> None:
    for label, key in {"a1": "a", "b1": "b", "a2": "a", "free": "", "b2": "b"}.items():
        fulfilled(label, key)
    assert audit().out_of_order == 0
    lose("a1")
    double("a1")
    assert audit().violations() == ["out_of_order"]
    assert audit().out_of_order == 1


def test_what_was_held_is_taken_over_when_another_settles_it_next() -> None:
    for relays in (["relay-2"], ["relay-1", "relay-2"], []):
        id = fulfilled(f"held, then settled by {relays}")
        settle(id, "relay-2")
        Held.objects.create(message_id=id, relay="relay-1", at=now())
        for relay in relays:
            settle(id, relay)
    assert audit().taken_over == 1


def settle(id: UUID, relay: str) -> None:
    Settled.objects.create(message_id=id, relay=relay, at=now())


def test_deliveries_and_publishes_are_counted_apart() -> None:
    twice, again = fulfilled("delivered twice"), fulfilled("published twice")
    Delivery.objects.create(message_id=twice, published_at="1")
    Delivery.objects.create(message_id=again, published_at="2")
    OutboxMessage.objects.filter(pk=again).update(redeliveries=1)
    ledger = audit()
    assert (ledger.delivered_again, ledger.published_again, ledger.redelivered) == (2, 1, 1)

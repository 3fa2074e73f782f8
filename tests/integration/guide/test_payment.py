"""docs/guide/payment.md; tests/acceptance/test_payments.py has the bad week."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError
from django.test import Client
from django.utils import timezone

from idempotency.exceptions import KeyInProgress, KeyReused, LeaseLost
from idempotency.models import IdempotencyKey
from idempotency.signals import executed
from outbox.models import OutboxMessage
from outbox.testing import drain_outbox
from sample_project.gateway import client
from sample_project.gateway.faults import Fault, Faults
from sample_project.gateway.server import Gateway
from sample_project.guide import payment as module
from sample_project.guide.models import Booking, Payment
from sample_project.guide.tasks import pay
from tests.integration.guide import flawed
from tests.integration.guide.racing import race

pytestmark = pytest.mark.django_db(transaction=True)

AMOUNT = Decimal("10.50")


@pytest.fixture
def payment() -> UUID:
    return Payment.objects.create(id=uuid4(), amount=AMOUNT, currency="EUR").pk


def deliver(payment: UUID, amount: Decimal = AMOUNT) -> str | None:
    return pay.run(payment, amount, "EUR")


def make_stale() -> None:
    """What a killed worker's lease becomes with time."""
    past = timezone.now() - timedelta(seconds=1)
    assert IdempotencyKey.objects.filter(state="in_progress").update(lease_expires_at=past)


def test_the_flaw_a_refused_payment_can_never_be_retried(tables: None) -> None:
    def refuse() -> None:
        raise flawed.GatewayRefused

    with pytest.raises(flawed.GatewayRefused):
        flawed.pay("k", 1, refuse)
    for _ in range(2):
        with pytest.raises(IntegrityError):
            flawed.pay("k", 1, lambda: "charged")


@pytest.mark.parametrize("error", [TimeoutError, flawed.Killed])
def test_the_flaw_a_timeout_or_a_crash_leaves_it_processing_for_ever(
    tables: None, error: type[BaseException]
) -> None:
    def charge() -> None:
        raise error

    with pytest.raises(error):
        flawed.pay("k", 1, charge)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="is being processed"):
            flawed.pay("k", 1, lambda: "charged")


def test_the_flaw_two_keys_charge_one_payment_twice(tables: None) -> None:
    charged = [flawed.pay(key, 1, lambda: "charged") for key in ("k1", "k2")]
    assert charged == ["charged", "charged"]


def test_the_flaw_one_key_answers_for_two_payments(tables: None) -> None:
    flawed.pay("k", 1, lambda: "receipt of payment 1")
    assert "receipt of payment 1" in str(flawed.pay("k", 2, lambda: "receipt of payment 2"))


def test_a_payment_is_charged_and_booked_once_however_concurrently(
    gateway: Gateway, payment: UUID
) -> None:
    results = race(lambda: deliver(payment))
    (charge,) = gateway.ledger.charges
    assert (charge.reference, charge.amount) == (str(payment), 1050)
    assert Booking.objects.get().receipt == charge.id
    assert charge.id in results
    assert all(result == charge.id or isinstance(result, KeyInProgress) for result in results)
    assert deliver(payment) == charge.id
    assert len(gateway.ledger.charges) == 1


def test_a_refused_payment_is_tried_again(gateway: Gateway, payment: UUID) -> None:
    gateway.faults = Faults([Fault.FAIL, Fault.FAIL])
    for _ in range(2):
        with pytest.raises(client.NothingDone):
            deliver(payment)
    assert deliver(payment) == gateway.ledger.charges[0].id
    assert Booking.objects.count() == 1


def test_after_a_timeout_the_gateway_recognises_its_key(gateway: Gateway, payment: UUID) -> None:
    gateway.faults = Faults([Fault.HANG], hang_seconds=30)
    with pytest.raises(client.Unknown):
        deliver(payment)
    assert not Booking.objects.exists()
    (charge,) = gateway.ledger.charges
    assert deliver(payment) == charge.id
    assert gateway.ledger.recognised == 1
    assert Booking.objects.get().amount == AMOUNT


def test_a_worker_that_ends_after_the_charge_is_followed_by_one_that_asks_no_more(
    gateway: Gateway, payment: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise flawed.Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "book", end)
        with pytest.raises(flawed.Killed):
            deliver(payment)
    assert deliver(payment) == gateway.ledger.charges[0].id
    assert sum(gateway.faults.seen.values()) == 1
    assert Booking.objects.count() == 1


def test_a_worker_that_ends_after_the_booking_is_followed_by_one_that_does_not_book(
    gateway: Gateway, payment: UUID
) -> None:
    def end(**_: object) -> None:
        raise flawed.Killed

    executed.connect(end)  # sent in the transaction of the completion
    try:
        with pytest.raises(flawed.Killed):
            deliver(payment)
    finally:
        executed.disconnect(end)
    assert Booking.objects.count() == 1
    assert deliver(payment) == gateway.ledger.charges[0].id
    assert Booking.objects.count() == 1


def test_an_owner_that_was_overtaken_writes_nothing(
    gateway: Gateway, payment: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = module.book
    by_another: list[object] = []

    def another() -> str | None:
        make_stale()
        return deliver(payment)

    def pause(*_: object) -> None:
        Payment.objects.update(declined=True)
        monkeypatch.setattr(module, "book", book)
        by_another.extend(race(another, racers=1))

    monkeypatch.setattr(module, "book", pause)
    with pytest.raises(LeaseLost):
        deliver(payment)
    assert by_another == [gateway.ledger.charges[0].id]
    assert not Payment.objects.get().declined
    assert Booking.objects.count() == 1


def test_a_declined_payment_is_an_answer_and_is_not_asked_again(
    gateway: Gateway, payment: UUID
) -> None:
    gateway.faults = Faults([Fault.DECLINE])
    assert deliver(payment) is None
    assert deliver(payment) is None
    assert gateway.ledger.charges == []
    assert Payment.objects.get().declined
    assert not Booking.objects.exists()


def test_another_amount_for_the_same_payment_is_an_error(gateway: Gateway, payment: UUID) -> None:
    deliver(payment)
    with pytest.raises(KeyReused):
        deliver(payment, AMOUNT + 1)
    assert len(gateway.ledger.charges) == 1


def test_a_client_that_asks_twice_pays_once(gateway: Gateway, settings: Any) -> None:
    settings.ROOT_URLCONF = "sample_project.guide.urls"
    browser = Client(headers={"Idempotency-Key": '"a click"'})
    browser.force_login(User.objects.create_user("ada"))
    first, second = (browser.post("/payments/", {"amount": "10.50"}) for _ in range(2))
    assert first.status_code == second.status_code == 201
    assert first.content == second.content
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert OutboxMessage.objects.count() == Payment.objects.count() == 1
    drain_outbox()
    assert [charge.amount for charge in gateway.ledger.charges] == [1050]
    assert Booking.objects.get().amount == AMOUNT


@pytest.mark.parametrize("amount", ["", "0", "-1", "NaN", "1.005"])
def test_an_amount_that_is_none_is_a_400_and_leaves_nothing(settings: Any, amount: str) -> None:
    settings.ROOT_URLCONF = "sample_project.guide.urls"
    browser = Client(headers={"Idempotency-Key": "click"})
    browser.force_login(User.objects.create_user("ada"))
    assert browser.post("/payments/", {"amount": amount}).status_code == 400
    assert not Payment.objects.exists()
    assert not IdempotencyKey.objects.exists()

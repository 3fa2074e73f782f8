"""docs/how-to.md: each of its examples is here word for word, and runs."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from celery import chain, shared_task
from django.core.mail import send_mail
from django.db import transaction

from idempotency import idempotent
from idempotency.exceptions import KeyReused
from idempotency.models import IdempotencyKey
from idempotency.testing import assert_exactly_once, override_idempotency, travel
from outbox.celery import OutboxTask
from outbox.exceptions import DuplicateKey
from outbox.models import OutboxMessage
from outbox.testing import assert_enqueued, drain_outbox
from sample_project.shop.forms import OrderForm
from sample_project.shop.models import Order, Payment, Receipt
from sample_project.shop.tasks import book_payment, write_receipt
from sample_project.shop.views import place_order

HOW_TO = (Path(__file__).parents[2] / "docs" / "how-to.md").read_text()

pytestmark = pytest.mark.django_db(transaction=True)


@shared_task
@idempotent
def book_and_write(order_id: int, amount: Decimal, recipient: str) -> None:
    Payment.objects.create(order_id=order_id, amount=amount)
    OutboxMessage.objects.enqueue(write_receipt.s(order_id, recipient))


@shared_task
@idempotent(key="charge:{order_id}")
def charge(order_id: int, amount: Decimal) -> None:
    Payment.objects.create(order_id=order_id, amount=amount)


@idempotent(key="invoice:{order_id}")
def invoice(order_id: int) -> Decimal:
    return Payment.objects.create(order_id=order_id, amount=Decimal("7.90")).amount


def unguarded_invoice(order_id: int) -> None:
    Payment.objects.create(order_id=order_id, amount=Decimal("7.90"))


@idempotent(key="mail:{order_id}", mode="leased")
def mail(order_id: int) -> None:
    send_mail("Your order", f"It is number {order_id}.", None, ["ada@example.com"])


@shared_task(base=OutboxTask)
@idempotent
def thank(order_id: int, recipient: str) -> None:
    Receipt.objects.create(order_id=order_id, recipient=recipient)


@pytest.fixture
def order() -> Order:
    return Order.objects.create(customer="Ada", product="tea")


def test_later() -> None:
    order = Order.objects.create(customer="Ada", product="tea")
    with transaction.atomic():
        signature = write_receipt.s(order.pk, order.customer)
        OutboxMessage.objects.enqueue(signature.set(countdown=60, expires=3600, priority=3))
    message = OutboxMessage.objects.get()
    assert message.available_at is not None
    assert message.expires_at is not None
    assert (message.available_at - message.created_at).total_seconds() == pytest.approx(60, abs=1)
    assert (message.expires_at - message.created_at).total_seconds() == pytest.approx(3600, abs=5)
    assert message.properties["priority"] == 3
    assert not OutboxMessage.objects.due().exists()


def test_many() -> None:
    orders = [Order.objects.create(customer=name, product="tea") for name in ("Ada", "Alan")]
    with transaction.atomic():
        OutboxMessage.objects.enqueue_many(
            write_receipt.s(order.pk, order.customer) for order in orders
        )
    drain_outbox()
    assert {receipt.recipient for receipt in Receipt.objects.all()} == {"Ada", "Alan"}


def test_one_task_follows_another(order: Order) -> None:
    with transaction.atomic():
        OutboxMessage.objects.enqueue(book_and_write.s(order.pk, order.amount, "Ada"))
    assert drain_outbox() == 2
    assert (order.payments.count(), order.receipts.count()) == (1, 1)


def test_a_chain(order: Order) -> None:
    with transaction.atomic():
        OutboxMessage.objects.enqueue(
            chain(book_payment.si(order.pk, order.amount), write_receipt.si(order.pk, "Ada"))
        )
    assert drain_outbox() == 1
    assert (order.payments.count(), order.receipts.count()) == (1, 1)


def test_a_key_at_the_enqueue(order: Order) -> None:
    with transaction.atomic():
        key = f"receipt:{order.pk}"
        first = OutboxMessage.objects.enqueue(write_receipt.s(order.pk, "Ada"), key=key)
        again = OutboxMessage.objects.enqueue(write_receipt.s(order.pk, "Ada"), key=key)
    assert again.pk == first.pk
    with pytest.raises(DuplicateKey), transaction.atomic():
        OutboxMessage.objects.enqueue(write_receipt.s(order.pk, "Eve"), key=key)


def test_a_key_at_the_guard(order: Order) -> None:
    with transaction.atomic():
        for _ in range(2):
            OutboxMessage.objects.enqueue(charge.s(order.pk, order.amount))
    assert drain_outbox() == 2
    assert order.payments.count() == 1
    with transaction.atomic():
        OutboxMessage.objects.enqueue(charge.s(order.pk, order.amount + 1))
    with pytest.raises(KeyReused):
        drain_outbox()


def test_in_order(order: Order) -> None:
    account = f"account:{order.customer}"
    with transaction.atomic():
        OutboxMessage.objects.enqueue(book_payment.s(order.pk, order.amount), ordering_key=account)
    with transaction.atomic():
        OutboxMessage.objects.enqueue(write_receipt.s(order.pk, "Ada"), ordering_key=account)
    assert OutboxMessage.objects.due().get().task == book_payment.name
    assert drain_outbox() == 2
    assert order.receipts.count() == 1


def test_a_guarded_function(order: Order) -> None:
    assert invoice(order.pk) == Decimal("7.90")
    assert invoice(order.pk) == Decimal("7.90")
    assert order.payments.count() == 1


def test_a_function_that_is_not_decorated(order: Order) -> None:
    for replayed in (False, True):
        outcome = IdempotencyKey.objects.run_once(
            order.pk,
            lambda: Payment.objects.create(order=order, amount=order.amount).amount,
            namespace="shop.pay",
        )
        assert outcome.value == order.amount
        assert outcome.replayed is replayed
    assert order.payments.count() == 1


def test_delay_writes_a_message(order: Order) -> None:
    result = thank.delay(order.pk, "Ada")
    assert str(assert_enqueued(thank, args=[order.pk, "Ada"]).pk) == result.id
    with transaction.atomic():
        thank.delay(order.pk, "Ada")
        transaction.set_rollback(True)
    assert drain_outbox() == 1
    assert order.receipts.count() == 1


def test_the_shop() -> None:
    order = place_order(OrderForm({"customer": "Ada", "product": "cup", "quantity": 2}))
    assert_enqueued(book_payment, args=[order.pk, Decimal("25.00")])
    drain_outbox()
    assert order.payments.get().amount == Decimal("25.00")


def test_an_order_is_invoiced_once(order: Order) -> None:
    amount = assert_exactly_once(lambda: invoice(order.pk))
    assert amount == Decimal("7.90")


def test_a_mail_is_sent_once(order: Order, mailoutbox: list[object]) -> None:
    assert_exactly_once(lambda: mail(order.pk), effects=lambda: len(mailoutbox))


def test_deliveries_take_effect_once(order: Order) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(thank.s(order.pk, "Ada"))
    assert_exactly_once(
        lambda: thank.apply((order.pk, "Ada"), task_id=str(message.pk), throw=True).get()
    )
    assert order.receipts.count() == 1


def test_what_the_how_to_says_of_an_unguarded_one(order: Order) -> None:
    with pytest.raises(AssertionError) as told:
        assert_exactly_once(lambda: unguarded_invoice(order.pk))
    assert "\n".join(f"    {line}" for line in str(told.value).splitlines()[:2]) in HOW_TO


def test_time_passes(order: Order) -> None:
    invoice(order.pk)
    travel(timedelta(days=8))
    invoice(order.pk)
    assert order.payments.count() == 2, "the key has expired"


def test_without_guards(order: Order) -> None:
    with override_idempotency(enabled=False):
        invoice(order.pk)
        invoice(order.pk)
    assert order.payments.count() == 2


def test_looking_after_what_failed(order: Order) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(write_receipt.s(order.pk, "Ada"))
        retired = OutboxMessage.objects.enqueue(book_payment.s(order.pk, order.amount))
    OutboxMessage.objects.filter(pk=message.pk).update(status="dead", available_at=None)
    OutboxMessage.objects.settle([retired.pk])
    OutboxMessage.objects.mark_failed(retired.pk, "it is gone")
    OutboxMessage.objects.filter(pk=retired.pk).update(task="shop.tasks.retired")

    OutboxMessage.objects.dead().retry()
    OutboxMessage.objects.stuck().retry()
    OutboxMessage.objects.failed().filter(task="shop.tasks.retired").discard()

    message.refresh_from_db()
    retired.refresh_from_db()
    assert (message.status, retired.status) == ("pending", "discarded")

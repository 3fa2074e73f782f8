"""The ledger finds what is lost and what is doubled; a ledger that balances has neither."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING

import pytest
from django.db import transaction

from outbox.models import OutboxMessage
from outbox.testing import drain_outbox
from sample_project.demo import ledger
from sample_project.demo.models import Delivery
from sample_project.demo.progress import Progress
from sample_project.shop.forms import OrderForm
from sample_project.shop.models import Order, Payment, Receipt
from sample_project.shop.views import place_order

if TYPE_CHECKING:
    from datetime import datetime

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def since() -> datetime:
    return ledger.database_clock()


@pytest.fixture
def order(since: datetime) -> Order:
    """An order with all that follows, each message delivered twice."""
    placed = place_order(OrderForm({"customer": "Ada", "product": "tea", "quantity": 2}))
    drain_outbox()
    for message in OutboxMessage.objects.all():
        for outcome in Delivery.Outcome.EXECUTED, Delivery.Outcome.SUPPRESSED:
            Delivery.objects.create(message_id=message.pk, worker_pid=1, outcome=outcome)
    return placed


def problems(since: datetime, accepted: int = 1) -> str:
    return "; ".join(ledger.read(since).problems(accepted))


def test_it_balances(since: datetime, order: Order) -> None:
    assert problems(since) == ""
    found = ledger.read(since)
    assert (found.orders, found.receipts, found.payments) == (1, 1, 1)
    assert (found.messages, found.published, found.executed, found.redelivered) == (2, 2, 2, 0)
    assert (found.deliveries, found.fewest_deliveries, found.suppressed) == (4, 2, 2)
    assert (found.lost, found.doubled) == (0, 0)


def test_it_counts_from_its_moment(since: datetime, order: Order) -> None:
    found = ledger.read(ledger.database_clock())
    assert (found.orders, found.messages, found.deliveries) == (0, 0, 0)
    Order.objects.update(created_at=since - timedelta(days=1))
    assert ledger.read(since).orders == 0


def test_a_lost_payment_shows(since: datetime, order: Order) -> None:
    Payment.objects.all().delete()
    assert "1 receipts or payments are lost" in problems(since)


def test_a_doubled_payment_shows_and_does_not_hide_a_lost_receipt(
    since: datetime, order: Order
) -> None:
    Payment.objects.create(order=order, amount=Decimal("15.80"))
    Receipt.objects.all().delete()
    found = ledger.read(since)
    assert (found.lost, found.doubled) == (1, 1)
    assert "1 receipts or payments are doubled" in problems(since)


def test_an_order_that_was_accepted_and_is_not_there_shows(since: datetime, order: Order) -> None:
    assert "2 orders were accepted, but 1 are committed" in problems(since, accepted=2)


def test_an_order_without_its_messages_shows(since: datetime, order: Order) -> None:
    Order.objects.create(customer="Eve", product="cup")
    assert "2 orders have 2 messages" in problems(since, accepted=2)


def test_a_message_that_waits_shows(since: datetime) -> None:
    place_order(OrderForm({"customer": "Ada", "product": "tea", "quantity": 2}))
    assert "2 messages were not published" in problems(since)
    assert "2 messages have no receipt" in problems(since)


def test_a_message_that_came_once_shows(since: datetime, order: Order) -> None:
    Delivery.objects.filter(outcome="suppressed").first().delete()  # type: ignore[union-attr]
    assert "a message was delivered 1 times only" in problems(since)
    assert "only 1 duplicates of 2 messages were suppressed" in problems(since)


def test_an_order_that_is_rolled_back_leaves_nothing(since: datetime) -> None:
    with transaction.atomic():
        place_order(OrderForm({"customer": "Ada", "product": "tea", "quantity": 2}))
        transaction.set_rollback(True)
    assert (ledger.read(since).orders, ledger.read(since).messages) == (0, 0)


def test_a_person_reads_every_figure(since: datetime, order: Order) -> None:
    text = "\n".join(replace(ledger.read(since), lost=7, doubled=8).lines(9, 6))
    for label, figure in {"lost": 7, "doubled": 8, "accepted over HTTP": 9, "once more": 6}.items():
        assert any(label in line and str(figure) in line.split() for line in text.splitlines()), (
            text
        )


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_rewrites_its_line_on_a_terminal() -> None:
    terminal = Terminal()
    progress = Progress(terminal)
    progress.update("one")
    progress.update("one")
    progress.update("two")
    progress.say("said")
    assert terminal.getvalue().count("one") == 1
    assert terminal.getvalue().index("\r\x1b[K  two") < terminal.getvalue().index("said")


def test_progress_elsewhere_is_plain_and_not_too_much() -> None:
    stream = StringIO()
    progress = Progress(stream)
    progress.update("one")
    progress.update("two")
    progress.say("said")
    assert "one\n" in stream.getvalue()
    assert "two" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()

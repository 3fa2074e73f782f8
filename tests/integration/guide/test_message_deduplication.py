"""docs/guide/message-deduplication.md"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from django.db import transaction

from outbox.models import OutboxMessage
from outbox.testing import drain_outbox
from sample_project.guide.models import Stock
from sample_project.guide.tasks import count_sale, take_from_stock
from tests.integration.guide import flawed
from tests.integration.guide.racing import Meeting, race

if TYPE_CHECKING:
    from redis import Redis

pytestmark = pytest.mark.django_db(transaction=True)

SALE = {"product": "tea", "quantity": 1}


@pytest.fixture
def tea() -> Stock:
    return Stock.objects.create(product="tea", quantity=10)


def test_the_flaw_two_real_messages_with_the_same_content_are_one(redis: Redis) -> None:
    sold: list[int] = []
    for _ in range(2):
        flawed.seen_message(redis, SALE, lambda: sold.append(1))
    assert len(sold) == 1


def test_the_flaw_a_second_consumer_gets_nothing(redis: Redis) -> None:
    ran: list[str] = []
    flawed.seen_message(redis, SALE, lambda: ran.append("stock"))
    flawed.seen_message(redis, SALE, lambda: ran.append("statistics"))
    assert ran == ["stock"]


def test_the_flaw_two_deliveries_at_once_both_run(redis: Redis) -> None:
    work = Meeting()
    race(lambda: flawed.seen_message(redis, SALE, work), racers=2)
    assert work.effects == 2


def test_the_flaw_a_crash_before_it_is_noted_runs_it_again(redis: Redis) -> None:
    ran: list[int] = []

    def crash() -> None:
        ran.append(1)
        raise flawed.Killed

    with pytest.raises(flawed.Killed):
        flawed.seen_message(redis, SALE, crash)
    flawed.seen_message(redis, SALE, lambda: ran.append(2))
    assert len(ran) == 2


def test_a_message_counts_once_however_often_it_is_delivered(tea: Stock) -> None:
    id = str(uuid4())
    race(lambda: take_from_stock.apply(kwargs=SALE, task_id=id))
    take_from_stock.apply(kwargs=SALE, task_id=id)
    tea.refresh_from_db()
    assert tea.quantity == 9


def test_two_messages_with_the_same_content_both_count(tea: Stock) -> None:
    with transaction.atomic():
        for _ in range(2):
            OutboxMessage.objects.enqueue(take_from_stock.s(**SALE))
    drain_outbox()
    tea.refresh_from_db()
    assert tea.quantity == 8


def test_each_consumer_has_its_own_keys(tea: Stock) -> None:
    id = str(uuid4())
    take_from_stock.apply(kwargs=SALE, task_id=id)
    count_sale.apply(kwargs=SALE, task_id=id)
    tea.refresh_from_db()
    assert (tea.quantity, tea.sold) == (9, 1)


def test_a_duplicate_gets_the_result_of_the_first(tea: Stock) -> None:
    id = str(uuid4())
    assert [count_sale.apply(kwargs=SALE, task_id=id).get() for _ in range(2)] == [1, 1]

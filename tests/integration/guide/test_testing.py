"""docs/guide/testing.md"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from idempotency.testing import assert_exactly_once
from sample_project.guide.models import Credit, Sale
from sample_project.guide.tasks import give_credit
from tests.integration.guide import flawed
from tests.integration.guide.racing import Meeting, race

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

pytestmark = pytest.mark.django_db(transaction=True)

SAMPLES: dict[str, Callable[[Redis], object]] = {
    "upsert": lambda redis: flawed.update_score(1, 10),
    "check before execute": lambda redis: flawed.notify("n1", "ada", sell),
    "keys": lambda redis: flawed.charge(1, 10.0, sell),
    "redis lock": lambda redis: flawed.under_lock(redis, "lock", "task", sell),
    "table": lambda redis: flawed.with_table("import", sell),
    "message": lambda redis: flawed.seen_message(redis, {"id": 1}, sell),
    "payment": lambda redis: flawed.pay("k", 1, sell),
}


def sell() -> str:
    Sale.objects.create(product="tea", quantity=1)
    return "sold"


def effects() -> int:
    ((score,),) = flawed.execute("SELECT score FROM flawed_scores")
    return Sale.objects.count() + int(score) // 10


@pytest.fixture(autouse=True)
def _score(tables: None) -> None:
    flawed.execute("INSERT INTO flawed_scores VALUES (1, 0)")


@pytest.mark.parametrize("name", ["check before execute", "keys", "table", "message", "payment"])
def test_the_flaw_one_call_after_the_other_finds_nothing(name: str, redis: Redis) -> None:
    for _ in range(2):
        SAMPLES[name](redis)
    assert effects() == 1


def test_the_flaw_records_are_bounded_by_their_key_and_effects_are_not() -> None:
    effect = Meeting()
    race(lambda: flawed.charge(1, 10.0, effect), racers=2)
    assert flawed.execute("SELECT count(*) FROM flawed_results") == [(1,)]
    assert effect.effects == 2


@pytest.mark.parametrize("name", SAMPLES)
def test_each_flawed_sample_is_caught(name: str, redis: Redis) -> None:
    with pytest.raises(AssertionError) as told:
        assert_exactly_once(lambda: SAMPLES[name](redis), effects=effects, racers=4)
    assert "effects instead of 1" in str(told.value) or "calls raised" in str(told.value)


def test_a_credit_is_given_once() -> None:
    credit = uuid4()
    assert_exactly_once(
        lambda: give_credit(credit, "ada", Decimal("10.00")), effects=Credit.objects.count
    )

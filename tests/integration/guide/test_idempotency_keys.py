"""docs/guide/idempotency-keys.md"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from idempotency import make_key
from idempotency.exceptions import KeyInProgress, KeyReused
from idempotency.models import IdempotencyKey
from sample_project.guide.credit import bonus_key
from sample_project.guide.models import Credit
from sample_project.guide.tasks import give_credit, pay_bonus
from tests.integration.guide import flawed
from tests.integration.guide.racing import Meeting, race

pytestmark = pytest.mark.django_db(transaction=True)

AMOUNT = Decimal("10.00")


def test_the_flaw_a_key_of_the_arguments_swallows_a_second_intent(tables: None) -> None:
    charged: list[int] = []
    for _ in range(2):  # two purchases of the same thing by the same customer
        flawed.charge(7, 10.0, lambda: charged.append(1))
    assert len(charged) == 1


def test_the_flaw_two_workers_both_find_nothing_and_both_charge(tables: None) -> None:
    gateway = Meeting()
    race(lambda: flawed.charge(7, 10.0, gateway), racers=2)
    assert gateway.effects == 2


def test_the_flaw_the_first_answer_is_an_object_and_the_second_is_text(tables: None) -> None:
    first = flawed.charge(7, 10.0, lambda: {"id": 1})
    assert flawed.charge(7, 10.0, lambda: {"id": 1}) != first


def test_the_flaw_json_is_no_canonical_form() -> None:
    assert flawed.key_of("t", amount=1) != flawed.key_of("t", amount=1.0)
    assert flawed.key_of("t", rows={1: "a"}) == flawed.key_of("t", rows={"1": "a"})
    with pytest.raises(TypeError):
        flawed.key_of("t", amount=AMOUNT)


def test_two_intents_with_equal_arguments_both_run() -> None:
    for _ in range(2):
        give_credit(uuid4(), "ada", AMOUNT)
    assert Credit.objects.count() == 2


def test_one_intent_runs_once_however_concurrently() -> None:
    credit = uuid4()
    results = race(lambda: give_credit(credit, "ada", AMOUNT))
    assert Credit.objects.count() == 1
    assert AMOUNT in results
    assert all(result == AMOUNT or isinstance(result, KeyInProgress) for result in results)


def test_the_answer_comes_back_equal_in_value_and_type() -> None:
    credit = uuid4()
    first, second = (give_credit(credit, "ada", AMOUNT) for _ in range(2))
    assert second == first
    assert type(second) is type(first) is Decimal


def test_the_same_intent_with_another_amount_is_an_error() -> None:
    credit = uuid4()
    give_credit(credit, "ada", AMOUNT)
    with pytest.raises(KeyReused):
        give_credit(credit, "ada", AMOUNT + 1)


def test_one_bonus_a_month_and_no_address_in_the_table() -> None:
    pay_bonus("ada@example.com", date(2026, 11, 1), AMOUNT)
    pay_bonus("ada@example.com", date(2026, 11, 1), AMOUNT)
    pay_bonus("ada@example.com", date(2026, 12, 1), AMOUNT)
    assert Credit.objects.count() == 2
    assert not IdempotencyKey.objects.filter(key__contains="ada").exists()
    assert bonus_key("ada@example.com", date(2026, 11, 1)) == bonus_key(
        "ada@example.com", date(2026, 11, 30)
    )


def test_equal_values_make_equal_keys_and_others_do_not() -> None:
    assert make_key("t", 1) == make_key("t", 1.0) == make_key("t", Decimal("1.00"))
    assert make_key("t", rows=(1, 2)) == make_key("t", rows=[1, 2])
    assert make_key("t", "1") != make_key("t", 1)
    assert make_key("t", UUID(int=1)) != make_key("t", str(UUID(int=1)))

"""docs/guide/testing.md"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from sample_project.guide.models import Credit
from sample_project.guide.tasks import give_credit
from tests.integration.guide import flawed
from tests.integration.guide.racing import Meeting, race

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.django_db(transaction=True)

RACY = {
    "check before execute": lambda send: flawed.notify("n1", "ada", send),
    "keys": lambda charge: flawed.charge(1, 10.0, charge),
}


@pytest.mark.parametrize("sample", RACY.values(), ids=RACY)
def test_the_flaw_one_call_after_the_other_finds_no_race(
    tables: None, sample: Callable[[Callable[[], object]], object]
) -> None:
    effect = Meeting()
    sample(effect)
    sample(effect)
    assert effect.effects == 1, "the usual test fails"


@pytest.mark.parametrize("sample", RACY.values(), ids=RACY)
def test_a_race_finds_it(tables: None, sample: Callable[[Callable[[], object]], object]) -> None:
    effect = Meeting()
    race(lambda: sample(effect))
    assert effect.effects > 1


def test_the_flaw_records_are_bounded_by_their_key_and_effects_are_not(tables: None) -> None:
    effect = Meeting()
    race(lambda: flawed.charge(1, 10.0, effect), racers=2)
    assert flawed.execute("SELECT count(*) FROM flawed_results") == [(1,)]
    assert effect.effects == 2


def test_a_credit_is_given_once() -> None:
    credit = uuid4()

    results = race(lambda: give_credit(credit, "ada", Decimal("10.00")))
    results.append(give_credit(credit, "ada", Decimal("10.00")))

    assert Credit.objects.count() == 1  # effects, not records
    given = [result for result in results if not isinstance(result, Exception)]
    assert {(type(value), value) for value in given} == {(Decimal, Decimal("10.00"))}

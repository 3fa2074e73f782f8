"""A schedule is as good as its seed."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from tests.faults.schedule import AIMED, ESSENTIAL, FATE, draw_faults, draw_kills

VICTIMS = ("relay", "worker", "broker")


def test_same_seed_same_schedule() -> None:
    assert draw_kills(1, VICTIMS, rounds=3, messages=1000) == draw_kills(
        1, VICTIMS, rounds=3, messages=1000
    )
    assert draw_kills(1, VICTIMS, rounds=3, messages=1000) != draw_kills(
        2, VICTIMS, rounds=3, messages=1000
    )


def test_everyone_is_killed_in_each_round_while_there_is_work() -> None:
    kills = draw_kills(3, VICTIMS, rounds=4, messages=1000)
    assert Counter(chain.from_iterable(kill.victims for kill in kills)) == dict.fromkeys(VICTIMS, 4)
    moments = [kill.after for kill in kills]
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < 1000


def test_same_seed_same_faults() -> None:
    assert draw_faults(1, 30, messages=1000) == draw_faults(1, 30, messages=1000)
    assert draw_faults(1, 30, messages=1000) != draw_faults(2, 30, messages=1000)


def test_every_fate_comes_once_before_any_comes_again() -> None:
    every = {(role, kind) for role, kinds in FATE.items() for kind in kinds}
    faults = draw_faults(4, 2 * len(every) + 5, messages=1000)
    fates = [(fault.role, fault.kind) for fault in faults]
    assert set(fates[: len(every)]) == set(fates[len(every) : 2 * len(every)]) == every


@pytest.mark.parametrize("seed", range(20))
def test_the_shortest_run_has_what_makes_it_tell_something(seed: int) -> None:
    faults = draw_faults(seed, 8, messages=1000)
    assert len(faults) == 8
    assert {(fault.role, fault.kind) for fault in faults if fault.alone} == set(ESSENTIAL)
    for kind in AIMED:
        first = next(fault for fault in faults if (fault.role, fault.kind) == ("relay", kind))
        assert first.aimed
        assert not first.sent
    moments = [fault.after for fault in faults]
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < 1000

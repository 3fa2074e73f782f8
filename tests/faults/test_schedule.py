"""A schedule is as good as its seed."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from tests.faults.schedule import draw

VICTIMS = ("relay", "worker", "broker")


def test_same_seed_same_schedule() -> None:
    assert draw(1, VICTIMS, rounds=3, messages=1000) == draw(1, VICTIMS, rounds=3, messages=1000)
    assert draw(1, VICTIMS, rounds=3, messages=1000) != draw(2, VICTIMS, rounds=3, messages=1000)


def test_everyone_is_killed_in_each_round_while_there_is_work() -> None:
    faults = draw(3, VICTIMS, rounds=4, messages=1000)
    assert Counter(chain.from_iterable(fault.victims for fault in faults)) == dict.fromkeys(
        VICTIMS, 4
    )
    moments = [fault.after for fault in faults]
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < 1000

"""A sweep: back in time, a little at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from outbox.sweep import COST, NARROWEST, PAUSES, WIDEST, Sweep

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
CHEAP, DEAR = COST / 10, COST * 2
Stretch = tuple[datetime | None, datetime]


def look(sweep: Sweep, now: datetime, took: timedelta = CHEAP) -> tuple[Stretch, bool]:
    """Look at a stretch; return it, and what the sweep says of its end."""
    stretch = sweep.stretch(now, latest=now)
    assert stretch is not None
    return stretch, sweep.note(now, stretch[0], took)


def swept(sweep: Sweep, took: timedelta = CHEAP) -> list[Stretch]:
    """Look at all stretches of a sweep, one each hour."""
    stretches: list[Stretch] = []
    while not stretches or stretches[-1][0] is not None:
        now = NOON + len(stretches) * timedelta(hours=1)
        stretches.append(look(sweep, now, took)[0])
        assert len(stretches) < 100
    return stretches


def width(stretch: Stretch) -> timedelta:
    start, end = stretch
    assert start is not None
    return end - start


def test_it_leaves_nothing_out() -> None:
    stretches = swept(Sweep())
    assert stretches[0][1] == NOON
    assert all(later[0] == earlier[1] for later, earlier in pairwise(stretches))
    assert stretches[-1][0] is None


def test_what_is_long_ago_is_one_stretch() -> None:
    assert swept(Sweep())[-1][1] < NOON - WIDEST


def test_another_sweep_begins_with_what_is_latest() -> None:
    sweep = Sweep()
    swept(sweep)
    later = NOON + timedelta(days=7)
    assert look(sweep, later)[0] == (later - NARROWEST, later)


def test_a_stretch_is_as_wide_as_it_may_cost() -> None:
    sweep, now = Sweep(), NOON
    dead_a_second = timedelta(microseconds=300)
    widths = []
    for _ in range(30):
        start, end = sweep.stretch(now, latest=NOON) or (None, NOON)
        assert start is not None
        took = (end - start).total_seconds() * dead_a_second
        widths.append(took / COST)
        sweep.note(now, start, took)
        now += took * PAUSES
    assert all(0.25 <= share <= 2 for share in widths[5:])


def test_a_stretch_is_not_narrower_than_a_second() -> None:
    sweep = Sweep()
    for number in range(5):
        stretch, _ = look(sweep, NOON + number * timedelta(hours=1), DEAR)
        assert width(stretch) == NARROWEST


def test_the_longer_a_look_took_the_later_is_the_next() -> None:
    for took in (CHEAP, DEAR):
        sweep = Sweep()
        look(sweep, NOON, took)
        due = NOON + took * PAUSES
        assert sweep.stretch(due - timedelta(microseconds=1), latest=NOON) is None
        assert sweep.stretch(due, latest=NOON) is not None


def test_it_tells_at_its_end_whether_each_look_was_cheap() -> None:
    sweep, now = Sweep(), NOON
    for dear in (0, None, 3):
        told: list[tuple[Stretch, bool]] = []
        while not told or not sweep_is_over(told):
            now += timedelta(hours=1)
            told.append(look(sweep, now, DEAR if len(told) == dear else CHEAP))
        assert [ended for _, ended in told] == [False] * (len(told) - 1) + [dear is None]


def sweep_is_over(told: list[tuple[Stretch, bool]]) -> bool:
    (start, _), _ = told[-1]
    return start is None

"""Where a claim starts: at the watermark as a rule, and further back every now and then."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from outbox.watermark import (
    CHEAP,
    EACH,
    GRAIN,
    JUDGED,
    LAG,
    PAUSE_BEHIND,
    Watermark,
)

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)
MICROSECOND = timedelta(microseconds=1)
BEHIND = timedelta(minutes=1)


def noted(*, took: timedelta = 10 * MILLISECOND, latest: datetime | None = None) -> Watermark:
    """After looks at everything at noon, each of which took ``took``."""
    watermark = Watermark(BEHIND)
    for _ in range(JUDGED):
        watermark.note(NOON, None, latest, took)
    return watermark


def claim(watermark: Watermark, now: datetime) -> datetime | None:
    """Claim nothing from where the watermark says; return from where on that was."""
    start = watermark.start(now)
    watermark.note(now, start, None, timedelta(minutes=1))
    return start


def test_the_first_claim_looks_at_everything() -> None:
    assert Watermark(BEHIND).start(NOON) is None


def test_a_claim_starts_a_while_before_the_last_one() -> None:
    """So that it finds what was written before that one and committed after it."""
    assert noted().start(NOON + SECOND) == NOON - LAG
    assert noted(latest=NOON - MILLISECOND).start(NOON + SECOND) == NOON - LAG


def test_a_claim_starts_where_the_last_one_came_to_in_a_backlog() -> None:
    hours_ago = NOON - timedelta(hours=3)
    assert noted(latest=hours_ago).start(NOON + SECOND) == hours_ago


def test_a_claim_from_the_watermark_moves_it_on() -> None:
    watermark = noted()
    for seconds in (1, 2, 3):
        now = NOON + seconds * SECOND
        watermark.note(now, NOON, None, MILLISECOND)
        assert watermark.start(now) == now - LAG


@pytest.mark.parametrize(
    ("took", "dear"),
    [
        (MILLISECOND, False),
        (CHEAP, False),
        (CHEAP + MICROSECOND, True),
        (SECOND, True),
    ],
)
def test_each_claim_looks_at_everything_while_that_is_cheap(took: timedelta, dear: bool) -> None:
    watermark = noted(took=took)
    assert (watermark.start(NOON + MILLISECOND) is not None) == dear


# Looks behind the watermark


@pytest.fixture
def moved() -> Watermark:
    """A watermark that has moved on for longer than looks behind it go back, second by second."""
    watermark = noted(took=timedelta(minutes=1))
    for seconds in range(1, 90):
        claim(watermark, NOON + seconds * SECOND)
    return watermark


NOW = NOON + 90 * SECOND


def is_behind(start: datetime | None, now: datetime) -> bool:
    """Whether the watermark was there so long ago, or a grain more."""
    assert start is not None
    ago = now - LAG - start
    return BEHIND <= ago <= BEHIND + GRAIN


def test_a_look_behind_starts_where_the_watermark_was(moved: Watermark) -> None:
    assert is_behind(claim(moved, NOW), NOW)


def test_a_look_behind_is_made_at_intervals(moved: Watermark) -> None:
    claim(moved, NOW)
    assert claim(moved, NOW + MILLISECOND) == NOW - LAG
    assert claim(moved, NOW + PAUSE_BEHIND - MICROSECOND) == NOW + MILLISECOND - LAG
    now = NOW + PAUSE_BEHIND
    assert is_behind(claim(moved, now), now)


def test_a_look_behind_goes_back_in_a_backlog_as_in_time() -> None:
    """What another relay had claimed a minute ago was due hours ago."""
    hours_ago = NOON - timedelta(hours=3)
    watermark = noted(took=timedelta(minutes=1), latest=hours_ago)
    for seconds in range(1, 80):
        now, latest = NOON + seconds * SECOND, hours_ago + seconds * SECOND
        watermark.note(now, watermark.start(now), latest, MILLISECOND)
    assert watermark.start(NOON + 80 * SECOND) == hours_ago + 19 * SECOND


def test_a_look_behind_starts_no_later_than_the_watermark(moved: Watermark) -> None:
    """Which goes back to what another look has found."""
    hour_ago = NOW - timedelta(hours=1)
    moved.note_stretch(NOW, hour_ago, MILLISECOND, due=True)
    assert claim(moved, NOW) == hour_ago


def test_a_look_at_everything_has_nothing_behind_it(moved: Watermark) -> None:
    moved.forget()
    assert claim(moved, NOW) is None
    assert claim(moved, NOW + PAUSE_BEHIND) == NOW - LAG


def test_no_more_positions_are_remembered_than_are_needed(moved: Watermark) -> None:
    for number in range(1000):
        claim(moved, NOW + number * 100 * MILLISECOND)
    assert len(moved._positions) <= BEHIND / GRAIN + 2


# When a look is cheap


def test_a_few_slow_looks_are_a_busy_machines() -> None:
    watermark = noted(took=MILLISECOND)
    for _ in range(JUDGED - 1):
        watermark.note(NOON, None, None, SECOND)
        assert watermark.start(NOON) is None
    watermark.note(NOON, None, None, SECOND)
    assert watermark.start(NOON) == NOON - LAG


def test_the_first_looks_are_not_judged() -> None:
    watermark = Watermark(BEHIND)
    for _ in range(JUDGED - 1):
        watermark.note(NOON, None, None, SECOND)
        assert watermark.start(NOON) is None


def test_what_is_found_takes_its_time() -> None:
    watermark = Watermark(BEHIND)
    for _ in range(JUDGED):
        watermark.note(NOON, None, NOON, CHEAP + 500 * EACH, found=500)
    assert watermark.start(NOON) is None


def test_one_cheap_look_is_enough_to_look_each_time() -> None:
    watermark = noted()
    watermark.note(NOON, None, None, MILLISECOND)
    assert watermark.start(NOON) is None


def test_where_a_claim_would_start_is_told_before_the_time_is_known() -> None:
    assert Watermark(BEHIND).start() is None
    assert noted().start() == NOON - LAG
    assert noted(took=MILLISECOND).start() is None


def test_what_is_claimed_and_not_settled_is_looked_for_everywhere() -> None:
    watermark = noted()
    watermark.forget()
    assert watermark.start(NOON + MILLISECOND) is None
    watermark.note(NOON + MILLISECOND, None, None, 10 * MILLISECOND)
    assert watermark.start(NOON + 2 * MILLISECOND) is not None


# Sweeps of what lies further back


def test_a_sweep_begins_at_the_watermark(moved: Watermark) -> None:
    claim(moved, NOW)
    stretch = moved.stretch(NOW + MILLISECOND)
    assert stretch is not None
    assert stretch[1] == moved.start(NOW + MILLISECOND)


def test_there_is_none_while_each_claim_looks_at_everything() -> None:
    assert Watermark(BEHIND).stretch(NOON) is None
    assert noted(took=MILLISECOND).stretch(NOON + SECOND) is None


def test_the_next_claim_starts_where_a_sweep_found_something(moved: Watermark) -> None:
    moved.note_stretch(NOW, NOON - SECOND, MILLISECOND, due=False)
    assert moved.start() != NOON - SECOND
    moved.note_stretch(NOW, NOON - SECOND, MILLISECOND, due=True)
    assert moved.start() == NOON - SECOND
    moved.note_stretch(NOW, None, SECOND, due=True)
    assert moved.start() is None


@pytest.mark.parametrize("took", [MILLISECOND, SECOND])
def test_a_look_at_everything_is_tried_when_a_sweep_was_cheap(
    took: timedelta, moved: Watermark
) -> None:
    now, cheap = NOW, took < CHEAP
    claim(moved, now)
    for number in range(100):
        stretch = moved.stretch(now)
        assert stretch is not None
        moved.note_stretch(now, stretch[0], MILLISECOND if number else took, due=False)
        if stretch[0] is None:
            break
        claim(moved, now := now + timedelta(minutes=2))
    assert (moved.start() is None) == cheap


# The database's clock


def test_a_clock_that_was_set_back_is_noticed(moved: Watermark) -> None:
    """What becomes due then lies behind the watermark."""
    moved.note_stretch(NOW, NOON, SECOND, due=False)
    before = NOON - timedelta(days=1)
    assert claim(moved, before) is None
    assert claim(moved, before + SECOND) == before - LAG
    assert moved.stretch(before + SECOND) is not None
    assert claim(moved, before + PAUSE_BEHIND) == before - LAG


def test_a_clock_that_was_set_forward_costs_a_look_behind(moved: Watermark) -> None:
    tomorrow = NOW + timedelta(days=1)
    assert claim(moved, tomorrow) is not None
    assert claim(moved, tomorrow + SECOND) == tomorrow - LAG

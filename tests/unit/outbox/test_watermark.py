"""Where a claim starts: at the watermark as a rule, and at the beginning every now and then."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from outbox.watermark import (
    CHEAP,
    EACH,
    JUDGED,
    LAG,
    LONGEST_PAUSE,
    PAUSES,
    Watermark,
)

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)


def noted(*, took: timedelta = 10 * MILLISECOND, latest: datetime | None = None) -> Watermark:
    """After looks at everything at noon, each of which took ``took``."""
    watermark = Watermark()
    for _ in range(JUDGED):
        watermark.note(NOON, None, latest, took)
    return watermark


def test_the_first_claim_looks_at_everything() -> None:
    assert Watermark().start(NOON) is None


def test_a_claim_starts_a_while_before_the_last_one() -> None:
    """So that it finds what was written before that one and committed after it."""
    assert noted().start(NOON + SECOND) == NOON - LAG
    assert noted(latest=NOON - MILLISECOND).start(NOON + SECOND) == NOON - LAG


def test_a_claim_starts_where_the_last_one_came_to_in_a_backlog() -> None:
    hours_ago = NOON - timedelta(hours=3)
    assert noted(latest=hours_ago).start(NOON + SECOND) == hours_ago


def test_a_claim_from_the_watermark_moves_it_on_and_puts_nothing_off() -> None:
    watermark = noted()
    for seconds in (1, 2, 3):
        now = NOON + seconds * SECOND
        start = watermark.start(now)
        assert start is not None
        watermark.note(now, start, None, MILLISECOND)
        assert watermark.start(now) == now - LAG
    assert watermark.start(NOON + 10 * MILLISECOND * PAUSES) is None


@pytest.mark.parametrize(
    ("took", "pause"),
    [
        (MILLISECOND, timedelta(0)),
        (CHEAP, timedelta(0)),
        (CHEAP + MILLISECOND / 10, PAUSES * (CHEAP + MILLISECOND / 10)),
        (5 * MILLISECOND, PAUSES * 5 * MILLISECOND),
        (SECOND, LONGEST_PAUSE),
    ],
)
def test_the_longer_a_look_at_everything_takes_the_rarer_it_is(
    took: timedelta, pause: timedelta
) -> None:
    watermark = noted(took=took)
    assert watermark.start(NOON + pause) is None
    if pause:
        assert watermark.start(NOON + pause - timedelta(microseconds=1)) is not None


def test_a_few_slow_looks_are_a_busy_machines() -> None:
    watermark = noted(took=MILLISECOND)
    for _ in range(JUDGED - 1):
        watermark.note(NOON, None, None, SECOND)
        assert watermark.start(NOON) is None
    watermark.note(NOON, None, None, SECOND)
    assert watermark.start(NOON) == NOON - LAG


def test_the_first_looks_are_not_judged() -> None:
    watermark = Watermark()
    for _ in range(JUDGED - 1):
        watermark.note(NOON, None, None, SECOND)
        assert watermark.start(NOON) is None


def test_what_is_found_takes_its_time() -> None:
    watermark = Watermark()
    for _ in range(JUDGED):
        watermark.note(NOON, None, NOON, CHEAP + 500 * EACH, found=500)
    assert watermark.start(NOON) is None


def test_one_cheap_look_is_enough_to_look_each_time() -> None:
    watermark = noted()
    watermark.note(NOON, None, None, MILLISECOND)
    assert watermark.start(NOON) is None


def test_where_a_claim_would_start_is_told_before_the_time_is_known() -> None:
    assert Watermark().start() is None
    assert noted().start() == NOON - LAG
    assert noted(took=MILLISECOND).start() is None


def test_what_is_claimed_and_not_settled_is_looked_for_everywhere() -> None:
    watermark = noted()
    watermark.forget()
    assert watermark.start(NOON + MILLISECOND) is None
    watermark.note(NOON + MILLISECOND, None, None, 10 * MILLISECOND)
    assert watermark.start(NOON + 2 * MILLISECOND) is not None


def test_a_clock_that_was_set_back_is_noticed() -> None:
    """What becomes due then lies behind the watermark."""
    watermark = noted()
    watermark.note(NOON + SECOND, NOON, None, MILLISECOND)
    assert watermark.start(NOON + SECOND - MILLISECOND) is None
    assert watermark.start(NOON + SECOND) == NOON + SECOND - LAG


def test_a_clock_that_was_set_forward_costs_one_look() -> None:
    watermark = noted()
    tomorrow = NOON + timedelta(days=1)
    assert watermark.start(tomorrow) is None
    watermark.note(tomorrow, None, None, 10 * MILLISECOND)
    assert watermark.start(tomorrow + SECOND) == tomorrow - LAG

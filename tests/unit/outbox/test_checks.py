"""Configurations of the outbox that are refused at start."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from outbox.checks import check_window


def texts() -> list[str]:
    return [message.msg for message in check_window(None) if message.id == "outbox.E004"]


def test_the_default_window_is_longer_than_the_default_redeliveries() -> None:
    assert texts() == []


def test_a_window_shorter_than_the_redeliveries_is_refused(settings: Any) -> None:
    settings.OUTBOX_REDELIVER_AFTER = 60
    settings.OUTBOX_MAX_REDELIVERIES = 6
    settings.IDEMPOTENCY_TTL = timedelta(minutes=62)
    told = texts()
    assert any("tests.project.tasks.record_once " in text for text in told)
    for text in told:
        assert "1:02:00" in text  # the window
        assert "1:03:00" in text  # 1 + 2 + 4 + 8 + 16 + 32 minutes
    settings.IDEMPOTENCY_TTL = timedelta(minutes=63)
    assert texts() == []


@pytest.mark.parametrize("redeliveries", [40, 10_000])
def test_redeliveries_for_ever_are_longer_than_any_window(settings: Any, redeliveries: int) -> None:
    settings.OUTBOX_MAX_REDELIVERIES = redeliveries
    assert texts()

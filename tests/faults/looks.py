"""Relays that never look at everything twice, as under a pinned xmin: they seek, and sweep."""

from __future__ import annotations

from datetime import timedelta

from outbox import watermark

DEAR_LOOKS = "DEAR_LOOKS"


def make_dear() -> None:
    """Have no look at everything be cheap."""
    watermark.CHEAP = timedelta.min
    watermark.JUDGED = 1

"""Relays that never look at everything twice, as under a pinned xmin: they seek, and sweep."""

from __future__ import annotations

from datetime import timedelta

from outbox import watermark

DEAR_LOOKS = "DEAR_LOOKS"


def make_dear() -> None:
    """Have no look at everything be cheap, and looks behind come fifty times as often."""
    watermark.CHEAP = timedelta.min
    watermark.JUDGED = 1
    # Or a relay that was killed would be back, and look at everything, before another one does.
    watermark.PAUSE_BEHIND /= 50

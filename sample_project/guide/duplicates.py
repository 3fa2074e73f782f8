"""Best practices: duplicates are counted by what became of them, and logged without their keys."""

import logging
from collections import Counter
from typing import Any

from idempotency import signals

logger = logging.getLogger(__name__)

OUTCOMES = {
    "replayed": signals.replayed,
    "in progress": signals.in_progress,
    "mismatch": signals.mismatch,
    "reclaimed": signals.reclaimed,
    "fenced out": signals.fenced_out,
    "unknown": signals.unknown,
    "too late": signals.window_expired,
}
# Your metrics' counter, with the outcome and the namespace as its labels.
count: Counter[tuple[str, str]] = Counter()


def _count(outcome: str) -> Any:
    def receive(**of: Any) -> None:
        namespace = (of.get("record") or of["operation"]).namespace
        count[outcome, namespace] += 1
        logger.info("A duplicate in %s: %s (message %s).", namespace, outcome, of["message_id"])

    return receive


for outcome, signal in OUTCOMES.items():
    signal.connect(_count(outcome), weak=False, dispatch_uid=f"guide.duplicates.{outcome}")

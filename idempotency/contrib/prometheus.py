"""Counts for Prometheus: what became of guarded operations.

Needs ``prometheus_client`` (``pip install …[prometheus]``). Call ``connect()`` once per process,
for example in ``AppConfig.ready()``. How the counts get from a worker's processes to the scraper
(``PROMETHEUS_MULTIPROC_DIR``, a push gateway) is that package's business.
"""

from __future__ import annotations

from typing import Any

from django.db import transaction
from prometheus_client import Counter

from idempotency import signals

OPERATIONS = Counter(
    "idempotency_operations",
    "Guarded operations, by what became of them.",
    ["namespace", "outcome"],
)

IN_TRANSACTION = {"executed": signals.executed, "replayed": signals.replayed}

OUTCOMES = {
    "in_progress": signals.in_progress,
    "mismatch": signals.mismatch,
    "reclaimed": signals.reclaimed,
    "fenced_out": signals.fenced_out,
    "unknown": signals.unknown,
    "window_expired": signals.window_expired,
}


def connect() -> None:
    """Count from now on. A second call changes nothing."""
    for outcome, signal in {**IN_TRANSACTION, **OUTCOMES}.items():
        signal.connect(
            _counting(outcome), weak=False, dispatch_uid=f"idempotency.prometheus.{outcome}"
        )


def disconnect() -> None:
    """Count no longer."""
    for outcome, signal in {**IN_TRANSACTION, **OUTCOMES}.items():
        signal.disconnect(dispatch_uid=f"idempotency.prometheus.{outcome}")


def _counting(outcome: str) -> Any:
    def receive(*, using: str, **of: Any) -> None:
        namespace = (of.get("record") or of["operation"]).namespace
        count = OPERATIONS.labels(namespace, outcome).inc
        if outcome in IN_TRANSACTION:
            # What is rolled back after all has not been executed.
            transaction.on_commit(count, using=using)
        else:
            count()

    return receive

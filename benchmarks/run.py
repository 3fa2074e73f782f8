"""``python -m benchmarks.run [name ...]``: run the benchmarks and print their figures.

``MINUTES`` in the environment: how long ``growth-pinned`` takes (2).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from benchmarks.claim import claim_settle
from benchmarks.enqueue import enqueue
from benchmarks.growth import kept, pinned
from benchmarks.guard import guarded_task, guarded_view, many_keys
from benchmarks.harness import Figure, Ratio
from benchmarks.latency import latency
from benchmarks.ordering import ordering
from benchmarks.relay import relay

BENCHMARKS: dict[str, Callable[[], Sequence[Ratio | Figure]]] = {
    "relay-rabbitmq": lambda: relay("rabbitmq"),
    "relay-valkey": lambda: relay("valkey"),
    "enqueue": enqueue,
    "guarded-task": guarded_task,
    "guarded-view": guarded_view,
    "many-keys": many_keys,
    "latency": latency,
    "claim-settle": claim_settle,
    "growth-kept": kept,
    "growth-pinned": lambda: pinned(float(os.environ.get("MINUTES", "2"))),
    "ordering": ordering,
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"No benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}.")
        return 2
    if len(names) == 1:
        for ratio in BENCHMARKS[names[0]]():
            print(ratio, flush=True)
        return 0
    # A process each: Django and Celery are set up for one broker in each.
    status = 0
    for name in names or list(BENCHMARKS):
        print(f"{name}:", flush=True)
        status |= subprocess.run(
            [sys.executable, "-m", "benchmarks.run", name], check=False
        ).returncode
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

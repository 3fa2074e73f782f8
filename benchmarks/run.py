"""``python -m benchmarks.run [name ...]``: run the benchmarks and print their figures.

Without a name: all but the slow ones. ``figures`` as a name writes the table and the picture of
what each benchmark found when it last ran here; a run without a name ends with that.
``MINUTES`` in the environment: how long ``growth-pinned`` takes (2).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from benchmarks import figures
from benchmarks.claim import claim_settle
from benchmarks.enqueue import enqueue, enqueue_insert
from benchmarks.growth import kept, pinned
from benchmarks.guard import guarded_task, guarded_view, many_keys
from benchmarks.harness import Figure, Ratio
from benchmarks.latency import latency
from benchmarks.ordering import ordering
from benchmarks.peers import peers
from benchmarks.relay import relay

BENCHMARKS: dict[str, Callable[[], Sequence[Ratio | Figure]]] = {
    "relay-rabbitmq": lambda: relay("rabbitmq"),
    "relay-valkey": lambda: relay("valkey"),
    "peers-rabbitmq": lambda: peers("rabbitmq"),
    "peers-valkey": lambda: peers("valkey"),
    "enqueue": enqueue,
    "enqueue-insert": enqueue_insert,
    "guarded-task": guarded_task,
    "guarded-view": guarded_view,
    "many-keys": many_keys,
    "latency": latency,
    "claim-settle": claim_settle,
    "growth-kept": kept,
    "growth-pinned": lambda: pinned(float(os.environ.get("MINUTES", "2"))),
    "ordering": ordering,
}
SLOW = {"many-keys", "growth-kept", "growth-pinned", "ordering"}
"""They take many minutes, or fill a table with millions of rows first: by name only."""
FIGURES = "figures"


def main(names: list[str]) -> int:
    known = [*BENCHMARKS, FIGURES]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"No benchmark {', '.join(unknown)}; there are {', '.join(known)}.")
        return 2
    if len(names) == 1:
        _run(names[0])
        return 0
    # A process each: Django and Celery are set up for one broker in each.
    status = 0
    for name in names or [*(name for name in BENCHMARKS if name not in SLOW), FIGURES]:
        print(f"{name}:", flush=True)
        status |= subprocess.run(
            [sys.executable, "-m", "benchmarks.run", name], check=False
        ).returncode
    return status


def _run(name: str) -> None:
    if name == FIGURES:
        print(figures.write(BENCHMARKS))
        return
    found = BENCHMARKS[name]()
    figures.keep(name, found)
    for figure in found:
        print(figure, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""From a commit to the message at the broker, and what a relay costs that has nothing to do."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.harness import Figure, cpu_seconds, percentile, project
from benchmarks.traffic import DELIVERED_WITHIN, Arrivals, processes, produce, relaying

IDLE_SECONDS = 20
TRAFFIC: dict[str, Any] = {
    "on an idle system": {"rate": 10, "seconds": 12},
    "at 500 commits/s of 10 ms": {"rate": 500, "seconds": 12, "hold": 0.01},
}

RELAYS_BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid()
"""


def latency(rounds: int = 3) -> list[Figure]:
    """Have a relay, producers and a consumer be processes or threads of their own."""
    with project("rabbitmq"), processes() as children:
        times: dict[tuple[str, int], list[float]] = {}
        with relaying(children) as relay, Arrivals() as arrivals:
            produce(children, rate=10, seconds=1)
            sides = _idle(relay.pid)
            for _ in range(rounds):
                for name, traffic in TRAFFIC.items():
                    committed = produce(children, **traffic)
                    taken = arrivals.latencies(committed)
                    for share in DELIVERED_WITHIN:
                        times.setdefault((name, share), []).append(percentile(taken, share) * 1e3)
                    print(f"  {name}: {len(taken)} messages, slowest {max(taken) * 1e3:.0f} ms")
    figures = [
        Figure(
            f"commit to broker, p{share} {name}",
            tuple(taken),
            unit="ms",
            at_most=DELIVERED_WITHIN[share],
        )
        for (name, share), taken in times.items()
    ]
    return figures + [
        Figure(f"CPU of an idle relay, {side}", (share,), unit="%", at_most=2)
        for side, share in sides.items()
    ]


def _idle(relay: int) -> dict[str, float]:
    """Return the share of a CPU, in per cent, that a relay takes up without any message."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(RELAYS_BACKENDS)
        backends = [pid for (pid,) in cursor]
    connection.close()
    sides = {"its process": [relay], "its PostgreSQL backend": backends}
    before = {side: sum(map(cpu_seconds, pids)) for side, pids in sides.items()}
    began = time.monotonic()
    time.sleep(IDLE_SECONDS)
    passed = time.monotonic() - began
    return {
        side: (sum(map(cpu_seconds, pids)) - before[side]) / passed * 100
        for side, pids in sides.items()
    }

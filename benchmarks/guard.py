"""What a guard costs: the same task and the same view, one INSERT, with a guard and without."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from benchmarks.harness import Ratio, project

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = 250
"""Messages of one task before those of the other: few, so that both meet the same noise."""
WARM_UP = 2
REQUESTS = 300
KEYS = 10_000_000

# As executions leave them: message ids, in the order of time, over the last week.
FILL = """
INSERT INTO idempotency_idempotencykey
    (namespace, scope, key, fingerprint, state, result, message_id, attempt,
     created_at, finished_at, expires_at)
SELECT 'benchmarks.tasks.guarded_on_other', '', id, sha, 'completed', %(result)s, id, 1,
    at, at, at + interval '7 days'
FROM generate_series(1, %(keys)s) AS n,
    LATERAL (SELECT statement_timestamp() - (%(keys)s - n) * interval '7 days' / %(keys)s) AS t(at),
    LATERAL (SELECT sha256(n::text::bytea)::text) AS s(bytes),
    LATERAL (SELECT substr(bytes, 3)) AS f(sha),
    LATERAL (
        SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
            || '7' || substr(sha, 1, 3) || '8' || substr(sha, 4, 15))::uuid::text
    ) AS u(id)
"""

# From one effect to the next; the median, so that a stall of the machine is not the task's.
BLOCKS = """
SELECT label, percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds)
FROM (
    SELECT label, extract(epoch FROM created_at - lag(created_at) OVER (
        PARTITION BY label ORDER BY created_at
    )) AS seconds
    FROM project_effect WHERE label LIKE %s
) AS intervals
GROUP BY label HAVING count(*) = %s
"""


class Side(NamedTuple):
    """One of those that are compared."""

    name: str
    task: Any
    using: str


def guarded_task(rounds: int = 16) -> list[Ratio]:
    """Have a real worker execute enqueued messages of each task, in turn; receipts included."""
    with project("rabbitmq"):
        from benchmarks import tasks

        sides = {
            "a guarded task's time": tasks.guarded,
            "one's without a savepoint": tasks.guarded_flat,
            "one's that writes key and receipt by hand": tasks.by_hand,
            "unguarded": tasks.unguarded,
        }
        taken = _in_turn([Side(name, task, "default") for name, task in sides.items()], rounds)
    return [
        Ratio(
            f"{name} over the unguarded one's",
            _ratios(taken[name], taken["unguarded"]),
            at_most=1.5,
        )
        for name in list(sides)[:-1]
    ]


def guarded_view(rounds: int = 10) -> list[Ratio]:
    """Send requests of a user to both views in turn, each with a new key, all through Django."""
    with project("rabbitmq"):
        from django.contrib.auth.models import User
        from django.test import Client, override_settings

        client = Client()
        client.force_login(User.objects.create_user("benchmark"))

        def request(path: str) -> float:
            headers = {"Idempotency-Key": str(uuid4())}
            began = time.perf_counter()
            response = client.post(path, {"label": "view"}, "application/json", headers=headers)
            taken = time.perf_counter() - began
            assert response.status_code == 201
            return taken

        ratios = []
        with override_settings(ROOT_URLCONF="benchmarks.urls"):
            for _ in range(rounds + 1):
                taken = [(request("/guarded/"), request("/unguarded/")) for _ in range(REQUESTS)]
                ours, theirs = map(statistics.median, zip(*taken, strict=True))
                print(f"  guarded {ours * 1e6:,.0f} us   unguarded {theirs * 1e6:,.0f} us")
                ratios.append(ours / theirs)
    title = "a guarded view's time over the unguarded one's"
    return [Ratio(title, tuple(ratios[1:]), at_most=1.5)]


def many_keys(rounds: int = 20) -> list[Ratio]:
    """A guarded task on a database with ten million keys, over the same on one without any."""
    with project("rabbitmq", others=["other"]):
        from django.db import connections

        from benchmarks.tasks import guarded, guarded_on_other
        from idempotency import results

        with connections["other"].cursor() as cursor:
            cursor.execute(FILL, {"result": results.dumps(None), "keys": KEYS})
            cursor.execute("VACUUM ANALYZE idempotency_idempotencykey")
            cursor.execute("CHECKPOINT")
        sides = [Side("full", guarded_on_other, "other"), Side("empty", guarded, "default")]
        taken = _in_turn(sides, rounds)
    ratios = _ratios(taken["full"], taken["empty"])
    title = f"a guarded task's time with {KEYS:,} keys over an empty table"
    return [Ratio(title, ratios, at_most=1.15)]


def _in_turn(sides: Sequence[Side], rounds: int) -> dict[str, list[float]]:
    """Have one worker execute blocks of each in turn; return the seconds of each one's messages."""
    for block in range(rounds + WARM_UP):
        for side in sides:
            _enqueue(side, block)
    _execute(sides[-1], rounds + WARM_UP - 1)
    taken = {side.name: _seconds(side)[WARM_UP:] for side in sides}
    for name, times in taken.items():
        print(f"  {name} {statistics.median(times) * 1e6:,.0f} us")
    return taken


def _ratios(ours: list[float], theirs: list[float]) -> tuple[float, ...]:
    return tuple(one / other for one, other in zip(ours, theirs, strict=True))


def _enqueue(side: Side, block: int) -> None:
    from django.db import transaction

    from outbox.models import OutboxMessage
    from outbox.relay import Relay

    messages = [side.task.s(f"{side.name} {block}") for _ in range(BLOCK)]
    with transaction.atomic(using=side.using):
        OutboxMessage.objects.enqueue_many(messages, using=side.using)
    relay = Relay(using=side.using)
    relay.drain()
    relay.close()


def _execute(side: Side, last: int) -> None:
    """Have a worker execute all that is published; ``last`` is the last block, of that side."""
    from tests.helpers import wait_for
    from tests.project.models import Effect
    from tests.servers.children import Children

    effects = Effect.objects.using(side.using).filter(label=f"{side.name} {last}")
    broker = {"CELERY_BROKER_URL": os.environ["CELERY_BROKER_URL"]}
    with tempfile.TemporaryDirectory() as directory:
        children = Children(Path(directory), broker)
        try:
            worker = children.start_worker(
                "--include=benchmarks.tasks", loglevel="WARNING", ready=False
            )
            wait_for(lambda: effects.count() == BLOCK, timeout=300, interval=1)
            worker.terminate()
            worker.wait()
        finally:
            children.end()


def _seconds(side: Side) -> list[float]:
    """Return the seconds that the worker took for each message, block by block."""
    from django.db import connections

    with connections[side.using].cursor() as cursor:
        cursor.execute(BLOCKS, [f"{side.name} %", BLOCK])
        taken = {int(label.rpartition(" ")[2]): float(seconds) for label, seconds in cursor}
    return [taken[block] for block in sorted(taken)]

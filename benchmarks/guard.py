"""What a guard costs: the same task, one INSERT in a transaction, with @idempotent and without."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Ratio, project

MESSAGES = 2_000
KEYS = 10_000_000

FILL = """
INSERT INTO idempotency_idempotencykey
    (namespace, scope, key, fingerprint, state, result, message_id, attempt,
     created_at, finished_at, expires_at)
SELECT 'benchmark', '', gen_random_uuid()::text, '', 'completed', %s, '', 1,
    clock_timestamp(), clock_timestamp(), clock_timestamp() + interval '30 days'
FROM generate_series(1, %s)
"""


def guarded_task(rounds: int = 5) -> list[Ratio]:
    """Have a real worker execute enqueued messages of both tasks, in turn; receipts included."""
    with project("rabbitmq"):
        from tests.project.tasks import record, record_once

        with_guard = [_ratio(record_once, record) for _ in range(rounds)]
        return [Ratio("a guarded task's time over the unguarded one's", tuple(with_guard))]


def many_keys(rounds: int = 5) -> list[Ratio]:
    """The guarded task with ten million keys in the table, over its time with an empty one."""
    with project("rabbitmq"):
        from django.db import connection

        from idempotency import results
        from tests.project.tasks import record_once

        _execute(record_once)
        empty = [_execute(record_once) for _ in range(rounds)]
        with connection.cursor() as cursor:
            cursor.execute(FILL, [results.dumps(None), KEYS])
            cursor.execute("VACUUM ANALYZE idempotency_idempotencykey")
        _execute(record_once)
        full = [_execute(record_once) for _ in range(rounds)]
        ratios = tuple(many / none for many, none in zip(sorted(full), sorted(empty), strict=True))
        return [Ratio(f"a guarded task's time with {KEYS:,} keys over an empty table", ratios)]


def _ratio(task: Any, peer: Any) -> float:
    ours, theirs = _execute(task), _execute(peer)
    print(f"  {task.name} {ours * 1e6:,.0f} us   {peer.name} {theirs * 1e6:,.0f} us")
    return ours / theirs


def _execute(task: Any) -> float:
    """Return the seconds that a worker takes for each message, from first effect to last."""
    from django.db import transaction
    from django.db.models import Count, Max, Min

    from outbox.models import OutboxMessage
    from outbox.relay import Relay
    from tests.helpers import wait_for
    from tests.project.models import Effect
    from tests.servers.children import Children

    Effect.objects.all().delete()
    with transaction.atomic():
        OutboxMessage.objects.enqueue_many([task.s(str(i)) for i in range(MESSAGES)])
    relay = Relay()
    relay.drain()
    relay.close()
    broker = {"CELERY_BROKER_URL": os.environ["CELERY_BROKER_URL"]}
    with tempfile.TemporaryDirectory() as directory:
        children = Children(Path(directory), broker)
        try:
            worker = children.start_worker(loglevel="WARNING", ready=False)
            wait_for(lambda: Effect.objects.count() >= MESSAGES, timeout=120)
            worker.terminate()
            worker.wait()
        finally:
            children.end()
    bounds = Effect.objects.aggregate(
        n=Count("pk"), first=Min("created_at"), last=Max("created_at")
    )
    assert bounds["n"] == MESSAGES
    seconds: float = (bounds["last"] - bounds["first"]).total_seconds()
    return seconds / (MESSAGES - 1)

"""A table that has grown: by what is kept, or by what vacuum cannot take away."""

from __future__ import annotations

import json
import time
from functools import partial

from benchmarks.harness import Figure, Ratio, percentile, project, seconds
from benchmarks.traffic import DELIVERED_WITHIN, Arrivals, processes, produce, relaying

KEPT = 5_000_000
MESSAGES = 20_000
WINDOW = 20
"""Seconds at the start and at the end that are compared."""

FILL = """
INSERT INTO outbox_outboxmessage (
    id, task, status, exchange, routing_key, queue, headers, properties, body, key,
    available_at, awaits_receipt, attempts, errors, created_at, published_at
)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
        || '7' || substr(sha, 1, 3) || '8' || substr(sha, 4, 15))::uuid,
    task, 'published', exchange, routing_key, queue, headers, properties, body, '',
    NULL, false, 0, '[]', at, at
FROM outbox_outboxmessage, generate_series(1, %(rows)s) AS n,
    LATERAL (SELECT now() - (%(rows)s - n) * interval '30 days' / %(rows)s) AS t(at),
    LATERAL (SELECT substr(sha256(n::text::bytea)::text, 3)) AS s(sha)
"""


def kept(rows: int = KEPT, rounds: int = 7) -> list[Ratio]:
    """Drain the same number of messages from a table full of published ones and from an empty."""
    with project("rabbitmq", others=["other"]):
        fill(rows)
        return drain_in_turn(rows, rounds)


def fill(rows: int) -> None:
    """Have so many messages in the other database that were published in the last month."""
    from django.db import connections, transaction

    from outbox.models import OutboxMessage
    from tests.project.tasks import record

    with transaction.atomic(using="other"):
        OutboxMessage.objects.enqueue(record.s("x"), using="other")
    with connections["other"].cursor() as cursor:
        cursor.execute(FILL, {"rows": rows})
        cursor.execute("DELETE FROM outbox_outboxmessage WHERE status = 'pending'")
        cursor.execute("VACUUM ANALYZE outbox_outboxmessage")
        cursor.execute("CHECKPOINT")


def drain_in_turn(rows: int, rounds: int) -> list[Ratio]:
    """Drain both databases in each round, the empty one first in every other."""
    taken: dict[str, list[float]] = {"default": [], "other": []}
    for number in range(rounds + 1):
        for alias in sorted(taken, reverse=bool(number % 2)):
            taken[alias].append(_drain(alias))
        print("  " + "   ".join(f"{a} {MESSAGES / t[-1]:,.0f}/s" for a, t in taken.items()))
    ratios = [empty / full for empty, full in zip(*taken.values(), strict=True)]
    title = f"rate with {rows:,} published rows over an empty table's"
    return [Ratio(title, tuple(ratios[1:]), at_least=0.9)]


def _drain(alias: str) -> float:
    from celery import current_app
    from django.db import connections, transaction

    from benchmarks.relay import waiting
    from outbox.models import OutboxMessage
    from outbox.relay import Relay
    from tests.project.tasks import record

    for _ in range(MESSAGES // 1000):
        with transaction.atomic(using=alias):
            OutboxMessage.objects.enqueue_many([record.s("x")] * 1000, using=alias)
    relay = Relay(alias)
    took = seconds(relay.drain)
    relay.close()
    assert waiting(current_app) == MESSAGES
    if alias == "default":
        with connections[alias].cursor() as cursor:
            cursor.execute("TRUNCATE outbox_outboxmessage")
    return took


def pinned(minutes: float = 2) -> list[Figure]:
    """Publish 1,000 messages a second while a transaction keeps vacuum from all of them."""
    with project("rabbitmq"), processes() as children:
        from django.db import connection

        with relaying(children, "benchmarks.timed_relay") as relay, Arrivals() as arrivals:
            produce(children, rate=100, seconds=5, messages=10)
            other = connection.copy()
            with other.cursor() as cursor:
                cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                cursor.execute("SELECT count(*) FROM outbox_outboxmessage")
            began = time.monotonic()
            committed = produce(children, rate=100, seconds=minutes * 60, messages=10)
            arrivals.latencies(committed)
            other.close()
        claims = [
            (moment - began, took * 1e3)
            for moment, took in json.loads(relay.output().splitlines()[-1])
        ]
        delivered = [
            (moment - began, max(0, arrivals.moments[id] - moment) * 1e3)
            for id, moment in committed.items()
        ]
    print(f"  {len(committed) / minutes / 60:,.0f} messages/s, {len(claims)} claims")
    last = max(moment for moment, _ in delivered)
    figures = []
    for name, share, times, bound in (
        ("a claim, p50", 50, claims, None),
        ("a claim, p99", 99, claims, None),
        ("commit to broker, p50", 50, delivered, DELIVERED_WITHIN[50]),
        ("commit to broker, p99", 99, delivered, DELIVERED_WITHIN[99]),
    ):
        at = partial(_within, times, share)
        ends = {
            "at the start": at(2, 2 + WINDOW),
            f"after {minutes:g} min": at(last - WINDOW, last),
        }
        figures += [
            Figure(f"xmin pinned, {name} {end}", (ms,), unit="ms", at_most=bound)
            for end, ms in ends.items()
        ]
    return figures


def _within(times: list[tuple[float, float]], share: int, start: float, end: float) -> float:
    return percentile([took for moment, took in times if start <= moment < end], share)

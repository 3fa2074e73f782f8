"""What order costs: the same messages on many keys and without, executed by the same workers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Figure, Ratio, project, seconds

if TYPE_CHECKING:
    from tests.servers.children import Children

MESSAGES = 20_000
KEYS = 1000
CHUNK = 1000
BATCH = 500
CLAIMS = 200
CONCURRENCY = 2


def ordering(rounds: int = 5) -> list[Ratio | Figure]:
    """Execute messages on 1,000 keys and without, in turn; 20,000 wait on one further key.

    And time the claims of a relay among all of them.
    """
    with project("rabbitmq"), tempfile.TemporaryDirectory() as directory:
        from tests.servers.children import Children

        _enqueue("hot", lambda n: "hot")
        _enqueue("first", lambda n: f"key {n % KEYS}")
        claims = _claims()
        broker = {"CELERY_BROKER_URL": os.environ["CELERY_BROKER_URL"]}
        children = Children(Path(directory), broker)
        try:
            ratios = _in_turn(children, rounds)
        finally:
            children.end()
    return [
        Ratio(
            f"rate of {MESSAGES:,} messages on {KEYS:,} keys over the same without",
            ratios,
            at_least=0.8,
        ),
        *claims,
    ]


def _in_turn(children: Children, rounds: int) -> tuple[float, ...]:
    children.start_relay()
    children.start_worker(concurrency=CONCURRENCY, loglevel="WARNING", ready=False)
    _taken("first")
    ratios = []
    for number in range(rounds):
        taken = []
        for name, key in (("with", lambda n: f"key {n % KEYS}"), ("without", lambda n: "")):
            _enqueue(f"{name} {number}", key)
            taken.append(_taken(f"{name} {number}"))
        print(f"  with keys {MESSAGES / taken[0]:,.0f}/s   without {MESSAGES / taken[1]:,.0f}/s")
        ratios.append(taken[1] / taken[0])
    return tuple(ratios)


def _enqueue(name: str, key: Callable[[int], str]) -> None:
    from django.db import transaction

    from outbox.models import OutboxMessage
    from tests.project.tasks import record_once

    # One transaction, so that relays see all of them at one moment.
    with transaction.atomic():
        for start in range(0, MESSAGES, CHUNK):
            numbers = range(start, start + CHUNK)
            OutboxMessage.objects.enqueue_many(
                [record_once.s(f"{name} {number}") for number in numbers],
                ordering_keys=[key(number) for number in numbers],
            )
    if name == "hot":
        # Its first one holds the key, so the others stay where they are.
        head = OutboxMessage.objects.filter(ordering_key="hot", blocked=False)
        head.update(available_at=head.get().created_at + timedelta(days=1))


def _taken(name: str) -> float:
    """Wait until all of them are executed; return the seconds from the first to the last."""
    from django.db.models import Max, Min

    from tests.helpers import wait_for
    from tests.project.models import Effect

    effects = Effect.objects.filter(label__startswith=f"{name} ")
    wait_for(lambda: effects.count() == MESSAGES, timeout=600, interval=1)
    span = effects.aggregate(first=Min("created_at"), last=Max("created_at"))
    taken: timedelta = span["last"] - span["first"]
    return taken.total_seconds()


def _claims() -> list[Figure]:
    """Time claims of a full batch of heads, and claims that find nothing due."""
    from django.db.models.functions import Now

    from outbox.models import OutboxMessage

    heads = OutboxMessage.objects.filter(ordering_key__startswith="key", blocked=False)
    full = _milliseconds(BATCH)
    heads.update(available_at=Now() + timedelta(days=1))
    idle = _milliseconds(0)
    heads.update(available_at=Now())
    return [
        Figure(f"a claim of {BATCH} heads", full, unit="ms", at_most=15),
        Figure("a claim that finds nothing", idle, unit="ms", at_most=1),
    ]


def _claim(into: list[object]) -> None:
    from outbox.models import OutboxMessage

    into.extend(OutboxMessage.objects.claim(BATCH, 2**30))


def _milliseconds(expected: int) -> tuple[float, ...]:
    from django.db import transaction

    taken = []
    for _ in range(CLAIMS):
        with transaction.atomic():
            claimed: list[object] = []
            took = seconds(partial(_claim, claimed))
            assert len(claimed) == expected
            transaction.set_rollback(True)
        taken.append(1000 * took)
    return tuple(taken)

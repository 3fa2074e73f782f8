"""Many at once with one key: one effect. Threads, and processes with hash seeds of their own."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from django.db import connection, connections

from idempotency import idempotent
from idempotency.exceptions import KeyInProgress
from idempotency.models import IdempotencyKey
from tests.helpers import wait_for
from tests.locks import held_lock
from tests.project.models import Effect
from tests.servers.children import Children

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START = 4711
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]


def race(racers: int, func: Callable[[], str]) -> Counter[str]:
    """Call it in so many threads at once, and count what they got."""
    got: list[str] = []
    barrier = threading.Barrier(racers)

    def racer() -> None:
        try:
            connection.ensure_connection()
            barrier.wait(30)
            got.append(func())
        except Exception as error:
            got.append(repr(error))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=racer) for _ in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(got)


@pytest.mark.parametrize("attempt", range(5))
def test_threads(attempt: int) -> None:
    """The guide's own samples pass this in a row and fail it at once."""
    bodies: list[int] = []

    @idempotent(key="{label}")
    def effect(label: str) -> int:
        bodies.append(threading.get_ident())
        return int(Effect.objects.create(label=label).pk)

    def racer() -> str:
        try:
            return f"got {effect('race')}"
        except KeyInProgress:
            return "in progress"

    got = race(32, racer)

    pk = Effect.objects.get().pk
    assert len(bodies) == 1
    assert got[f"got {pk}"] >= 1
    assert set(got) <= {f"got {pk}", "in progress"}


def test_threads_that_wait_all_get_the_result() -> None:
    @idempotent(key="{label}", wait=30)
    def effect(label: str) -> int:
        return int(Effect.objects.create(label=label).pk)

    got = race(16, lambda: str(effect("race")))

    assert got == {str(Effect.objects.get().pk): 16}


def test_a_body_that_fails_is_run_by_another() -> None:
    """Each racer that gets the key while nobody has succeeded runs the body; one succeeds."""
    failures = iter([True] * 3 + [False] * 100)

    @idempotent(key="{label}", wait=30)
    def effect(label: str) -> str:
        Effect.objects.create(label=label)
        if next(failures):
            raise RuntimeError("failed")
        return "done"

    got = race(8, lambda: effect("race"))

    assert got == {"done": 5, "RuntimeError('failed')": 3}
    assert Effect.objects.count() == 1


def test_an_expired_key_is_replaced_once() -> None:
    IdempotencyKey.objects.run_once("k", lambda: "old", namespace="race")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE idempotency_idempotencykey SET expires_at = clock_timestamp()")

    def racer() -> str:
        try:
            value = IdempotencyKey.objects.run_once(
                "k", lambda: f"new {Effect.objects.create(label='new').pk}", namespace="race"
            ).value
        except KeyInProgress:
            return "in progress"
        return value

    got = race(16, racer)

    pk = Effect.objects.get().pk
    assert set(got) <= {f"new {pk}", "in progress"}


def waiting_racers() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return int(cursor.fetchone()[0])


@pytest.mark.slow
def test_processes_with_hash_seeds_of_their_own(tmp_path: Path) -> None:
    """``hash()`` as a key, which the guide has, is another one in each process."""
    children = Children(tmp_path, {})
    try:
        with held_lock(START):
            racers = [
                children.start(
                    "racer",
                    "tests.integration.idempotency.racer",
                    str(START),
                    "race",
                    env={"PYTHONHASHSEED": str(seed)},
                )
                for seed in range(8)
            ]
            wait_for(lambda: waiting_racers() == 8, timeout=60, message="The racers do not start")
        assert [racer.wait(60) for racer in racers] == [0] * 8
        got = Counter(racer.output().strip() for racer in racers)
    finally:
        children.end()

    assert got["executed"] == 1
    assert set(got) <= {"executed", "replayed", "in progress"}
    assert Effect.objects.count() == 1

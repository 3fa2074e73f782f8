"""One key and many racers: one effect, and everybody gets its result."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from django.db import connection, transaction

from idempotency.models import IdempotencyKey
from tests.helpers import wait_for
from tests.integration.idempotency.leases import guarded
from tests.integration.idempotency.leases.leasing import State
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sample_project.processes import Process
    from tests.integration.idempotency.leases.leasing import Leasing
    from tests.servers.children import Children

RACERS = 32
WAITING = """
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND objid = %s AND mode = 'ShareLock' AND NOT granted
"""


def let_go_together(start: Callable[[], None]) -> None:
    """Hold the lock that the racers wait for until all of them do."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [guarded.START])
        start()

        def waiting() -> bool:
            cursor.execute(WAITING, [guarded.START])
            [count] = cursor.fetchone()
            return bool(count == RACERS)

        wait_for(waiting, timeout=120, message="Not all racers are at the start")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", ["leased", "redis"])
def test_32_threads_take_effect_once(kind: str, redis_url: str) -> None:
    got: list[int] = []
    racing = threading.Thread(target=lambda: got.extend(guarded.race_in_threads(kind, RACERS)))
    let_go_together(racing.start)
    racing.join()
    assert got == [Effect.objects.get().pk] * RACERS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["leased", "redis"])
def test_8_processes_with_different_hash_seeds_take_effect_once(
    kind: str, processes: Children
) -> None:
    started: list[Process] = []

    def start() -> None:
        arguments = (guarded.__package__ or "", "race", kind, str(RACERS // 8))
        started.extend(
            processes.start("racer", *arguments, env={"PYTHONHASHSEED": str(seed)})
            for seed in range(8)
        )

    let_go_together(start)
    outputs = [process.output() for process in started if process.wait(60) == 0]
    got = [int(number) for output in outputs for number in output.split()]
    assert got == [Effect.objects.get().pk] * RACERS


def race_to_claim(leasing: Leasing) -> list[UUID]:
    """Have 24 threads claim at once; return the tokens of those who won."""
    barrier = threading.Barrier(24)
    won: list[UUID] = []

    def claim() -> None:
        try:
            leasing.found()  # connected
            barrier.wait(30)
            won.append(leasing.claim())
        except AssertionError:
            pass  # lost
        finally:
            connection.close()

    threads = [threading.Thread(target=claim) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("found", ["absent", "stale", "expired", "failed"])
def test_a_claim_has_one_winner(found: str, leasing: Leasing) -> None:
    if found != "absent":
        token = leasing.claim()
        if found == "failed":
            leasing.store.settle(leasing.operation(), token, State.FAILED_RETRYABLE)
        if found == "expired":
            leasing.store.settle(leasing.operation(), token, State.COMPLETED, result=b"r")
        leasing.make_stale()
        leasing.pass_time(leasing.operation().ttl * (found == "expired"))
    [winner] = race_to_claim(leasing)
    assert leasing.record().token == winner
    assert IdempotencyKey.objects.count() == leasing.in_database

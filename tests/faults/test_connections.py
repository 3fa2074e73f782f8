"""A worker's connection to the database is ended: what it had in hand comes again, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connection

from tests.faults.ledger import audit, backlog
from tests.faults.trail import terminate
from tests.helpers import wait_for

if TYPE_CHECKING:
    from tests.faults.system import System

LOCK = 77
MANY = 50


def test_one_delivery_ends_with_it_and_comes_again(system: System) -> None:
    """Without sparing the others: a worker that keeps its connection fails all that follow."""
    system.start_relay(env={"OUTBOX_REDELIVER_AFTER": "2"})
    worker = system.start_worker(env={"PGAPPNAME": "worker-1"})
    system.commit(["before"])
    system.await_executed()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        system.commit(["in hand"], lock=LOCK)
        system.commit(f"later {n}" for n in range(MANY))
        wait_for(_someone_waits, message=worker.output)
        terminate("worker-1")
        wait_for(lambda: "has not failed for that" in worker.output(), message=worker.output)
        cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
    system.await_executed()
    assert worker.output().count("raised unexpected: OperationalError") == 1
    ledger = audit()
    assert ledger.violations() == [], str(ledger)
    assert ledger.redelivered >= 1
    assert backlog().executed == MANY + 2


def _someone_waits() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return bool(cursor.fetchone()[0])

"""All of it through PgBouncer in transaction mode: nothing leans on a session."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from idempotency import fenced, idempotent, step
from idempotency.exceptions import KeyInProgress
from idempotency.models import IdempotencyKey
from outbox.models import OutboxMessage
from outbox.relay import Relay, RelayResult
from outbox.status_querysets import status_of
from tests.helpers import wait_for
from tests.project import tasks
from tests.project.celery import app
from tests.project.models import Effect
from tests.servers.pgbouncer import SESSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sample_project.processes import Process
    from tests.servers.brokers import Broker
    from tests.servers.pgbouncer import PgBouncer

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize("broker", ["valkey"], indirect=True),
    pytest.mark.usefixtures("broker"),
]

messages = OutboxMessage.objects
keys = IdempotencyKey.objects
record: Any = tasks.record
record_once: Any = tasks.record_once


@pytest.fixture
def pooled(pgbouncer: PgBouncer, transactional_db: None) -> Iterator[PgBouncer]:
    """This process reaches its database through PgBouncer, in each thread."""
    pgbouncer.start()
    connection.close()
    at: Any = connection.settings_dict
    before = {**at}
    at.update(HOST="127.0.0.1", PORT=str(pgbouncer.port), DISABLE_SERVER_SIDE_CURSORS=True)
    try:
        yield pgbouncer
    finally:
        connection.close()
        at.clear()
        at.update(before)


@pytest.fixture
def env(pgbouncer: PgBouncer) -> dict[str, str]:
    """Environment of a process that reaches the database through PgBouncer."""
    return {"DATABASE_URL": pgbouncer.url_of(str(connection.settings_dict["NAME"]))}


@pytest.fixture
def relay() -> Iterator[Relay]:
    with closing(Relay()) as relay:
        yield relay


def enqueue(signature: Any, number: int = 1) -> list[OutboxMessage]:
    with transaction.atomic():
        return messages.enqueue_many([signature] * number)


def asked(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        (value,) = cursor.fetchone()
        return value


def assert_no_session_keeps(*settings: str) -> None:
    """Look at each of the pool's sessions."""
    seen: set[int] = set()
    while len(seen) < SESSIONS:
        with transaction.atomic():
            seen.add(asked("SELECT pg_backend_pid()"))
            for name in settings:
                assert asked(f"SHOW {name}") == "0", name


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Do this in another thread, with connections of its own; it has ended when the block has."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        assert errors == []


@pytest.mark.usefixtures("pooled")
def test_each_transaction_has_another_session() -> None:
    """Or the other tests of this file would show nothing."""

    def sessions() -> int:
        return len({asked("SELECT pg_backend_pid()") for _ in range(SESSIONS)})

    wait_for(lambda: sessions() == SESSIONS)  # it opens them one after the other


@pytest.mark.usefixtures("pooled")
def test_claim_settle_and_redelivery(relay: Relay) -> None:
    enqueue(record_once.s("x"), 20)
    results: list[RelayResult] = []
    with transaction.atomic():
        assert len(messages.claim(5, 10**6)) == 5
        with beside(lambda: results.append(relay.run_once())):
            pass  # it ends while the rows are held
    assert results == [RelayResult(published=15)]
    assert relay.run_once() == RelayResult(published=5)
    broker_forgets()
    messages.update(available_at=Now() - timedelta(seconds=1))
    assert relay.run_once() == RelayResult(published=20)
    assert set(messages.values_list("redeliveries", flat=True)) == {1}
    assert_no_session_keeps("idle_in_transaction_session_timeout", "tcp_user_timeout")


def broker_forgets() -> None:
    with app.connection_for_write() as opened:
        channel: Any = opened.channel()
        channel.queue_purge("celery")


def test_relay_and_worker_as_processes(
    broker: Broker,
    env: dict[str, str],
    start_relay: Callable[..., Process],
    start_worker: Callable[..., Process],
) -> None:
    relay, worker = start_relay(env=env), start_worker(concurrency=2, env=env)
    enqueue(record_once.s("x"), 100)
    (failing,) = enqueue(tasks.fail.s("x"))
    wait_for(
        lambda: messages.executed().count() == 100 and messages.failed().count() == 1,
        message=lambda: f"{relay.output()[-2000:]} {worker.output()[-2000:]}",
    )
    assert Effect.objects.count() == 101
    failing.refresh_from_db()
    assert "RuntimeError" in failing.errors[0]["error"]
    relay.terminate()
    assert relay.wait(30) == 0, relay.output()
    once = start_relay("--once", env=env)
    assert once.wait(60) == 0, once.output()


def test_the_relay_outlives_the_pooler(
    pgbouncer: PgBouncer,
    broker: Broker,
    env: dict[str, str],
    start_relay: Callable[..., Process],
) -> None:
    pgbouncer.start()
    relay = start_relay(env=env)
    enqueue(record.s("x"))
    wait_for(lambda: messages.published().count() == 1, message=relay.output)
    pgbouncer.kill()
    wait_for(lambda: "is unavailable: " in relay.output(), message=relay.output)
    enqueue(record.s("x"))
    pgbouncer.start()
    wait_for(lambda: messages.published().count() == 2, message=relay.output)
    assert broker.queue_length() == 2


@pytest.mark.usefixtures("pooled")
def test_a_twin_is_told_so_and_gets_the_result_afterwards() -> None:
    """The advisory lock belongs to the transaction."""
    entered, leave = threading.Event(), threading.Event()

    def execute() -> int:
        entered.set()
        assert leave.wait(20)
        return Effect.objects.create(label="x").pk

    def first() -> None:
        keys.run_once("k", execute, namespace="tests")

    with beside(first):
        assert entered.wait(20)
        try:
            with pytest.raises(KeyInProgress):
                keys.run_once("k", execute, namespace="tests")
            waiting = threading.Timer(0.2, leave.set)
            waiting.start()
            outcome = keys.run_once("k", execute, namespace="tests", wait=20)
        finally:
            leave.set()
    assert outcome.replayed
    assert outcome.value == Effect.objects.get().pk
    assert_no_session_keeps("lock_timeout")
    assert asked("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


@pytest.mark.usefixtures("pooled")
def test_leased_work_with_its_heartbeat_its_steps_and_its_fence() -> None:
    lease = timedelta(seconds=1)
    calls: list[str] = []

    @idempotent(key="k", namespace="tests.pooled", mode="leased", lease=lease)
    def work() -> int:
        step("call", calls.append, "x")
        began = keys.get().lease_expires_at
        # Longer than a lease: the heartbeat keeps it.
        wait_for(lambda: asked(f"SELECT clock_timestamp() > '{began}'::timestamptz + '1 s'"))
        with fenced():
            return Effect.objects.create(label="x").pk

    assert work() == work() == Effect.objects.get().pk
    assert calls == ["x"]
    assert keys.get().attempt == 1


@pytest.mark.usefixtures("pooled")
def test_purge_and_status() -> None:
    enqueue(record.s("x"), 3)
    messages.update(status="discarded", available_at=None, created_at=Now() - timedelta(days=9))
    assert messages.purge(timedelta(days=8), batch_size=2) == 2
    assert status_of("default").pending == 0
    assert messages.purge(timedelta(days=8), batch_size=2) == 1

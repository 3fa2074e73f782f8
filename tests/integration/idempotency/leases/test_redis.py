"""What is Redis's own: names, expiry, restarts, and what it refuses."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from django.db import connection

from idempotency import fenced, idempotent, signals, step
from idempotency.exceptions import ImproperlyUsed, KeyInProgress, StoreUnavailable
from idempotency.models import IdempotencyKey
from idempotency.redis import RedisStore, name_of
from tests.helpers import wait_for
from tests.integration.idempotency.leases import guarded
from tests.integration.idempotency.leases.leasing import Leasing, State, redis_store
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from sample_project.processes import Process
    from sample_project.servers import ValkeyServer
    from tests.servers.brokers import Broker

pytestmark = pytest.mark.django_db


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    made = redis_store(redis_url)
    yield made
    made.client.close()


@pytest.fixture
def leasing(store: RedisStore) -> Leasing:
    return Leasing(store)


def test_the_name_of_a_hash_does_not_tell_the_key(leasing: Leasing, store: RedisStore) -> None:
    leasing.claim("someone@example.org")
    [name] = map(str, store.client.scan_iter())
    assert "idempotency:idk1:" in name
    assert "someone" not in name


def test_the_server_drops_what_has_expired(leasing: Leasing, store: RedisStore) -> None:
    name = name_of(leasing.operation())
    token = leasing.claim()
    assert 3600 < store.client.ttl(name) <= 3630
    store.settle(leasing.operation(), token, State.COMPLETED, result=b"r")
    assert 3590 < store.client.ttl(name) <= 3600


def test_the_server_keeps_what_a_person_has_to_resolve(leasing: Leasing, store: RedisStore) -> None:
    name = name_of(leasing.operation())
    token = leasing.claim(on_stale="block")
    assert store.client.ttl(name) == -1
    store.extend(leasing.operation(), token, timedelta(minutes=1))
    assert store.client.ttl(name) == -1
    store.settle(leasing.operation(), token, State.OUTCOME_UNKNOWN)
    assert store.client.ttl(name) == -1
    assert store.resolve(leasing.operation(), failed=ValueError("why"))
    assert store.client.ttl(name) > 0


def test_forget_deletes_all_but_a_live_lease(leasing: Leasing, store: RedisStore) -> None:
    leasing.claim()
    assert not store.forget(leasing.operation())
    leasing.make_stale()
    assert store.forget(leasing.operation())
    assert not store.forget(leasing.operation())


def test_resolve_takes_one_answer(leasing: Leasing, store: RedisStore) -> None:
    with pytest.raises(ImproperlyUsed, match="takes one of"):
        store.resolve(leasing.operation())


def test_a_fence_is_refused(leasing: Leasing) -> None:
    def body() -> None:
        with fenced():
            pass

    with pytest.raises(ImproperlyUsed, match='needs store="postgresql"'):
        leasing.run(body)


def test_a_guard_reaches_the_server_of_the_setting(redis_url: str) -> None:
    @idempotent(key="k", namespace="tests", mode="leased", store="redis")
    def guarded() -> int:
        return step("one", int, "7")

    told: list[dict[str, Any]] = []

    def receive(**kwargs: Any) -> None:
        told.append({**kwargs, "in_transaction": connection.in_atomic_block})

    signals.executed.connect(receive)
    try:
        assert [guarded(), guarded()] == [7, 7]
    finally:
        signals.executed.disconnect(receive)
    [call] = told
    assert (call["record"].state, call["using"]) == (State.COMPLETED, "default")
    assert call["in_transaction"]
    assert not IdempotencyKey.objects.exists()


def test_a_restart_of_the_server_in_the_middle_is_survived(
    leasing: Leasing, valkey: ValkeyServer
) -> None:
    def body() -> str:
        step("one", int, "7")
        valkey.restart()
        return "done"

    assert leasing.run(body).value == "done"
    assert leasing.run(body).replayed


def test_a_server_that_is_down_executes_nothing(leasing: Leasing, valkey: ValkeyServer) -> None:
    valkey.stop()
    try:
        with pytest.raises(StoreUnavailable, match="Connection refused"):
            leasing.run(lambda: pytest.fail("executed"))
    finally:
        valkey.start()


def test_a_server_that_takes_no_writes_executes_nothing(
    leasing: Leasing, store: RedisStore
) -> None:
    """Its memory is full, or it has become a replica."""
    store.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="OutOfMemoryError"):
            leasing.run(lambda: pytest.fail("executed"))
    finally:
        store.client.config_set("maxmemory", 0)
    assert leasing.run().value == "done"


def test_a_server_that_goes_away_inside_is_no_failure_of_the_task(
    leasing: Leasing, valkey: ValkeyServer
) -> None:
    calls: list[str] = []

    def body() -> str:
        calls.append("body")
        if len(calls) == 1:
            valkey.stop()
        return step("one", str, "done")

    try:
        with pytest.raises(StoreUnavailable):
            leasing.run(body, on_failed="raise")
    finally:
        valkey.start()
    with pytest.raises(KeyInProgress):
        leasing.run(body)  # until the lease is stale
    leasing.make_stale()
    assert leasing.run(body).value == "done"
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_task_waits_for_a_server_that_is_down(
    broker: Broker,
    start_worker: Callable[..., Process],
    redis_url: str,
    valkey: ValkeyServer,
    tmp_path: Path,
) -> None:
    worker = start_worker(
        f"--include={guarded.__name__}",
        env={"TEST_REDIS_URL": redis_url, "TEST_DEATHS": str(tmp_path)},
    )
    id = str(uuid4())
    valkey.stop()
    try:
        guarded.killed_redis.apply_async(("waits",), task_id=id)
        wait_for(lambda: f"[{id}] retry: Retry in " in worker.output(), message=worker.output)
    finally:
        valkey.start()
    wait_for(lambda: f"[{id}] succeeded" in worker.output(), message=worker.output)
    assert f"[{id}] raised" not in worker.output()
    assert Effect.objects.filter(label="waits completed").count() == 1

"""What is Redis's own: names, expiry, restarts, and what it refuses."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import redis
from django.db import connection

from idempotency import fenced, idempotent, signals, step
from idempotency.exceptions import ImproperlyUsed
from idempotency.models import IdempotencyKey
from idempotency.redis import RedisStore, name_of
from tests.integration.idempotency.leases.leasing import Leasing, State, redis_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sample_project.servers import ValkeyServer

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
        with pytest.raises(redis.ConnectionError):
            leasing.run(lambda: pytest.fail("executed"))
    finally:
        valkey.start()

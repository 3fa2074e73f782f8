"""Every test here that asks for ``leasing`` runs against both stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from idempotency.models import IdempotencyKey
from tests.integration.idempotency.leases.leasing import Leasing, redis_store
from tests.servers.children import Children

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_django import Settings

    from sample_project.servers import ValkeyServer

DATABASE = 900
"""Of the Valkey server, out of the way of its life as a broker."""


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    """An empty database of a running server."""
    valkey.start()
    url = valkey.url_of(DATABASE)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture(params=["postgresql", "redis"])
def leasing(request: pytest.FixtureRequest) -> Iterator[Leasing]:
    if request.param == "postgresql":
        yield Leasing(IdempotencyKey.objects.using("default"))
        return
    store = redis_store(request.getfixturevalue("redis_url"))
    yield Leasing(store)
    store.client.close()


@pytest.fixture
def processes(transactional_db: None, tmp_path: Path, redis_url: str) -> Iterator[Children]:
    """Processes on the live test database and the store in Valkey, without a broker."""
    started = Children(tmp_path, {"TEST_REDIS_URL": redis_url})
    yield started
    started.end()


@pytest.fixture(autouse=True)
def store_settings(request: pytest.FixtureRequest, settings: Settings) -> None:
    """The store in Valkey is also this process's, where a test starts others."""
    if "redis_url" in request.fixturenames:
        settings.IDEMPOTENCY_REDIS_URL = request.getfixturevalue("redis_url")

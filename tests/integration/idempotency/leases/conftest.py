"""Every test here that asks for ``leasing`` runs against both stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from idempotency.models import IdempotencyKey
from tests.integration.idempotency.leases.leasing import Leasing, redis_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sample_project.servers import ValkeyServer

DATABASE = 900
"""Of the Valkey server, out of the way of its life as a broker."""


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> Iterator[str]:
    """An empty database of a running server."""
    valkey.start()
    url = valkey.url_of(DATABASE)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    yield url


@pytest.fixture(params=["postgresql", "redis"])
def leasing(request: pytest.FixtureRequest) -> Iterator[Leasing]:
    if request.param == "postgresql":
        yield Leasing(IdempotencyKey.objects.using("default"))
        return
    store = redis_store(request.getfixturevalue("redis_url"))
    yield Leasing(store)
    store.client.close()

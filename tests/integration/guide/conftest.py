"""The gateway, a lock's Redis, and the tables of the flawed samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection
from redis import Redis

from sample_project.gateway.server import Gateway
from tests.integration.guide import flawed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sample_project.servers import ValkeyServer


@pytest.fixture
def gateway(settings: Any) -> Iterator[Gateway]:
    with Gateway() as gateway:
        settings.GUIDE_GATEWAY_URL = gateway.url
        yield gateway


@pytest.fixture
def redis(valkey: ValkeyServer, settings: Any) -> Iterator[Redis]:
    settings.GUIDE_REDIS_URL = valkey.url_of(1023)
    with Redis.from_url(settings.GUIDE_REDIS_URL) as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture
def tables(transactional_db: None) -> Iterator[None]:
    """The tables of the flawed samples."""
    with connection.cursor() as cursor:
        cursor.execute(flawed.TABLES)
    yield
    with connection.cursor() as cursor:
        for line in flawed.TABLES.strip().splitlines():
            cursor.execute(f"DROP TABLE {line.split()[2]}")

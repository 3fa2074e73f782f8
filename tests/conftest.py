"""Fixtures: servers that start when first asked for, and real processes of the test project."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, TypeVar

import pytest
from django.db import connection

from sample_project.servers import PostgresServer, Server, ServerMissing, ValkeyServer
from tests.servers.brokers import Broker, open_broker
from tests.servers.children import Children
from tests.servers.missing import missing
from tests.servers.pgbouncer import PgBouncer
from tests.servers.rabbitmq import RabbitMQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sample_project.processes import Process

S = TypeVar("S", bound=Server)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests: what begins last would keep one process busy, and others idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(postgres: PostgresServer | None) -> None:
    """Start PostgreSQL before pytest-django creates the test databases."""


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """Debian's RabbitMQ; kill and start it at will, it runs again for the next test."""
    yield from _running(RabbitMQ)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """Valkey with an append-only file that is written before each answer."""
    yield from _running(ValkeyServer)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[ValkeyServer]:
    """Debian's Redis, set up like ``valkey``."""
    program = shutil.which("redis-server")
    if program is None:
        missing("Redis is missing: apt-get install redis-server")
    yield from _running(lambda: ValkeyServer(program=program))


@pytest.fixture(scope="session")
def pgbouncer(django_db_setup: None) -> Iterator[PgBouncer]:
    """Debian's PgBouncer in transaction mode, before the test databases."""
    yield from _running(lambda: PgBouncer(connection.settings_dict))


@pytest.fixture(params=["rabbitmq", "valkey"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """The default Celery app's broker for one test: nothing of another test's is in it.

    ``@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)`` chooses; there is also
    ``redis_server``.
    """
    for opened in open_broker(request.param, request.getfixturevalue(request.param)):
        with opened.serving_app():
            yield opened


@pytest.fixture
def children(broker: Broker, transactional_db: None, tmp_path: Path) -> Iterator[Children]:
    """Processes of the test project, on the live test database and this test's broker."""
    started = Children(tmp_path, broker.env)
    try:
        yield started
    finally:
        started.end()


@pytest.fixture
def start_worker(children: Children) -> Callable[..., Process]:
    """Start a Celery worker: see ``Children.start_worker`` for the options."""
    return children.start_worker


@pytest.fixture
def start_relay(children: Children) -> Callable[..., Process]:
    """Start ``outbox_relay`` with command-line arguments: see ``Children.start_relay``."""
    return children.start_relay


def _running(make: Callable[[], S]) -> Iterator[S]:
    try:
        server = make()
    except ServerMissing as error:
        missing(str(error))
    with server:
        yield server

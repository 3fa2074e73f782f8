"""Servers, a migrated database, and ratios taken pair by pair."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """The ratios of one figure to another, one for each round."""

    title: str
    values: tuple[float, ...]

    def __str__(self) -> str:
        middle = statistics.median(self.values)
        return (
            f"{self.title}: {middle:.2f}  "
            f"(min {min(self.values):.2f}, max {max(self.values):.2f}, {len(self.values)} rounds)"
        )


@contextmanager
def project(broker: str, others: Collection[str] = ()) -> Iterator[None]:
    """Have PostgreSQL and a broker, and Django set up and migrated on them.

    ``others``: database aliases besides the default one.
    """
    from sample_project.servers import PostgresServer, ValkeyServer
    from tests.servers.rabbitmq import RabbitMQ

    with ExitStack() as servers:
        postgres = servers.enter_context(PostgresServer(settings={"fsync": "on"}))
        queue = servers.enter_context(RabbitMQ() if broker == "rabbitmq" else ValkeyServer())
        os.environ |= {
            "DATABASE_URL": postgres.url,
            "CELERY_BROKER_URL": queue.url,
            "DJANGO_SETTINGS_MODULE": "tests.project.settings",
            # As the sample project has it.
            "TEST_DB_REUSE_MAX": "1000",
        }
        import django
        from django.core.management import call_command
        from django.db import connection, connections

        django.setup()
        for alias in others:
            with connection.cursor() as cursor:
                cursor.execute(f'CREATE DATABASE "{connections[alias].settings_dict["NAME"]}"')
        for alias in ("default", *others):
            call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
        try:
            yield
        finally:
            connections.close_all()


def seconds(work: Callable[[], object]) -> float:
    """Return how long ``work()`` takes, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

"""Servers, a migrated database, and ratios taken pair by pair."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """What a benchmark found, a value for each round, and the bound that its middle should keep."""

    title: str
    values: tuple[float, ...]
    at_least: float | None = field(default=None, kw_only=True)
    at_most: float | None = field(default=None, kw_only=True)

    @property
    def middle(self) -> float:
        return statistics.median(self.values)

    @property
    def missed(self) -> bool:
        """Whether the middle value is on the wrong side of its bound."""
        too_low = self.at_least is not None and self.middle < self.at_least
        return too_low or (self.at_most is not None and self.middle > self.at_most)


@dataclass(frozen=True)
class Ratio(Measured):
    """The ratios of one figure to another."""

    def __str__(self) -> str:
        return (
            f"{self.title}: {self.middle:.2f}  "
            f"(min {min(self.values):.2f}, max {max(self.values):.2f}, {len(self.values)} rounds)"
        )


@dataclass(frozen=True)
class Figure(Measured):
    """Figures in their unit."""

    unit: str = field(kw_only=True)

    def __str__(self) -> str:
        told = f"{self.title}: {self.middle:.1f} {self.unit}"
        if len(self.values) == 1:
            return told
        return (
            f"{told}  (min {min(self.values):.1f}, max {max(self.values):.1f}, "
            f"{len(self.values)} rounds)"
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


def percentile(values: Sequence[float], share: int) -> float:
    """Return the value that ``share`` per cent of them do not exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * share // 100)]


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process of this machine has taken up (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

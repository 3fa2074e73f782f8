"""Our relay beside others': the same servers, the same task, each a process of its own.

The peers are installed into an environment of their own. Each runs as its documents say, with the
options that made it fastest here; the clock runs from the commit of the messages until the last is
no longer pending.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Ratio, project
from benchmarks.relay import enqueue, waiting

if TYPE_CHECKING:
    from sample_project.processes import Process

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "benchmarks.peer_project"
REQUIREMENTS = ROOT / "benchmarks/peer_project/requirements.txt"
THREADS = {
    "django-celery-outbox": [],
    "django-celery-outbox with 8 threads": ["--publish-concurrency=8"],
}
WARM_UP = 100
TIMEOUT = 300
"""Seconds in which a relay must start, or drain its messages."""


@dataclass(frozen=True)
class Side:
    """One relay: how to start it, how to give it messages, and what it has not published yet."""

    name: str
    command: list[str]
    env: dict[str, str]
    messages: int
    enqueue: Callable[[int], float]
    """Writes so many messages in one transaction; returns the time of the commit."""
    unpublished: str
    """A query that is true while there are any."""
    at_least: dict[str, float] = field(default_factory=dict)
    """By broker: how many times faster ours is meant to be."""


def peers(broker: str = "rabbitmq", rounds: int = 5) -> list[Ratio]:
    """Drain messages with our relay and with each peer's in turn; compare the rates."""
    python = environment()
    with project(broker), tempfile.TemporaryDirectory() as directory:
        ours, others = _ours(), list(_peers(python))
        ratios: dict[str, list[float]] = {side.name: [] for side in others}
        for _ in range(rounds):
            rates = {side.name: _rate(side, Path(directory)) for side in (ours, *others)}
            print("   ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items()), flush=True)
            for name, values in ratios.items():
                values.append(rates[ours.name] / rates[name])
    return [
        Ratio(
            f"relay to {broker}, rate over that of {side.name}",
            tuple(ratios[side.name]),
            at_least=side.at_least.get(broker),
        )
        for side in others
    ]


def environment() -> Path:
    """Return the Python of the peers' environment, which is made, or renewed, when it has to be."""
    directory = ROOT / ".make" / "peers-{}.{}".format(*sys.version_info)
    python = directory / "bin" / "python"
    stamp = directory / "installed"
    wanted = REQUIREMENTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Installing the peers ({REQUIREMENTS.relative_to(ROOT)})", flush=True)
        venv.create(directory, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted)
    return python


def _ours() -> Side:
    return Side(
        "ours",
        [*_django(sys.executable), "outbox_relay"],
        dict(os.environ),
        10_000,
        _enqueue_ours,
        "SELECT EXISTS (SELECT FROM outbox_outboxmessage WHERE available_at IS NOT NULL)",
    )


def _peers(python: Path) -> Iterator[Side]:
    env = _project(python, "django_celery_outbox")
    relay = [*_django(python), "celery_outbox_relay"]
    # Its guide to tuning: 500 to 1,000 for throughput, 0.1 s for latency.
    relay += ["--batch-size=500", "--idle-time=0.1"]
    for name, options in THREADS.items():
        yield Side(
            name,
            [*relay, *options],
            env,
            3_000,
            partial(_enqueue_theirs, python, env),
            "SELECT EXISTS (SELECT FROM celery_outbox)",
            {"rabbitmq": 8, "valkey": 12},
        )
    if tuple(map(int, platform.python_version_tuple()[:2])) < (3, 12):
        print("  django-reliable-outbox needs Python 3.12: measured without it")
        return
    yield Side(
        "django-reliable-outbox",
        [*_django(python), "outbox_worker", "--concurrency=4"],
        env := _project(python, "reliable_outbox"),
        500,
        partial(_enqueue_theirs, python, env),
        "SELECT EXISTS (SELECT FROM reliable_outbox_outboxmessage WHERE status = 'pending')",
    )


def _project(python: Path, app: str) -> dict[str, str]:
    """Make a database for a peer on the same server; return its project's environment."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{app}"')
    env = os.environ | {
        "PEER": app,
        "DATABASE_URL": f"{os.environ['DATABASE_URL'].rpartition('/')[0]}/{app}",
        "DJANGO_SETTINGS_MODULE": f"{PROJECT}.settings",
    }
    subprocess.run([*_django(python), "migrate", "--verbosity=0"], env=env, cwd=ROOT, check=True)
    return env


def _django(python: Path | str) -> list[str]:
    return [str(python), "-m", "django"]


def _enqueue_ours(count: int) -> float:
    enqueue(count)
    return time.time()


def _enqueue_theirs(python: Path, env: dict[str, str], count: int) -> float:
    finished = subprocess.run(
        [python, "-m", f"{PROJECT}.enqueue", str(count)],
        env=env,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(finished.stdout.splitlines()[-1])


def _rate(side: Side, directory: Path) -> float:
    """Return the messages a second from their commit until the last is published."""
    from celery import current_app

    with _running(side, directory) as relay:
        side.enqueue(WARM_UP)
        _drained(side, relay)
        waiting(current_app)
        committed = side.enqueue(side.messages)
        took = _drained(side, relay) - committed
    published = waiting(current_app)
    assert published == side.messages, f"{side.name} published {published} messages"
    return side.messages / took


@contextmanager
def _running(side: Side, directory: Path) -> Iterator[Process]:
    from sample_project.processes import Process

    relay = Process(side.command, log=directory / side.name, env=side.env, cwd=ROOT)
    try:
        yield relay
    finally:
        relay.stop()


def _drained(side: Side, relay: Process) -> float:
    """Wait until nothing is left to publish; return when that was."""
    import psycopg

    deadline = time.time() + TIMEOUT
    with psycopg.connect(side.env["DATABASE_URL"], autocommit=True) as connection:
        while connection.execute(side.unpublished).fetchone() == (True,):
            assert relay.running, relay.output()[-2000:]
            assert time.time() < deadline, relay.output()[-2000:]
            time.sleep(0.01)
    return time.time()

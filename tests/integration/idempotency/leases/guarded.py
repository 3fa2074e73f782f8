"""Guarded functions and tasks that other processes run: raced, killed and paused."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import shared_task
from celery.signals import task_postrun
from django.conf import settings
from django.db import connection, transaction

from idempotency import derived_key, fenced, idempotent, signals, step
from idempotency.exceptions import KeyInProgress
from idempotency.models import IdempotencyKey
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Callable

if "TEST_REDIS_URL" in os.environ:
    settings.IDEMPOTENCY_REDIS_URL = os.environ["TEST_REDIS_URL"]

START = 7_001
"""The advisory lock that racers wait for together."""
POINTS = (
    "before the claim",
    "after the claim",
    "inside a step",
    "between steps",
    "inside the fence",
    "before the completion",
    "inside the completion",
    "after the completion",
)
LEASE = 1.0

OPTIONS: dict[str, dict[str, Any]] = {
    "leased": {"mode": "leased", "lease": LEASE},
    "redis": {"mode": "leased", "lease": LEASE, "store": "redis"},
}


def raced(kind: str) -> Callable[[], int]:
    """Take effect under one key; return the effect's id once it is known."""

    @idempotent(key="race", namespace=f"tests.raced.{kind}", **OPTIONS[kind])
    def take_effect() -> int:
        return Effect.objects.create(label=kind).pk

    def race() -> int:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [START])
        while True:
            try:
                return take_effect()
            except KeyInProgress:
                time.sleep(0.01)

    return race


def race_in_threads(kind: str, racers: int) -> list[int]:
    """Race in this process; return what each racer got."""
    got: list[int] = []

    def run() -> None:
        try:
            got.append(raced(kind)())
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def die(label: str, here: str) -> None:
    """Where the message says so: SIGKILL this process, and only once."""
    wanted, _, store = label.partition("@")
    if wanted != here:
        return
    try:
        (Path(os.environ["TEST_DEATHS"]) / f"{wanted}@{store}").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def charge(label: str, name: str) -> str:
    """An effect outside the transaction, with the key that a provider would get."""
    Effect.objects.create(label=f"{label} {name} {derived_key(name)}")
    if name == "one":
        die(label, "inside a step")
    return name


def write(label: str) -> str:
    Effect.objects.create(label=f"{label} written")
    die(label, "inside the fence")
    return "written"


def work(label: str, *, database: bool) -> list[str]:
    die(label, "after the claim")
    done = [step("one", charge, label, "one")]
    die(label, "between steps")
    done.append(step("two", charge, label, "two"))
    if database:
        with fenced():
            done.append(step("write", write, label))
    die(label, "before the completion")
    return done


def key(label: str) -> str:
    die(label, "before the claim")
    return label


@shared_task
@idempotent(namespace="tests.killed", key=key, **OPTIONS["leased"])
def killed(label: str) -> list[str]:
    return work(label, database=True)


@shared_task
@idempotent(namespace="tests.killed", key=key, **OPTIONS["redis"])
def killed_redis(label: str) -> list[str]:
    return work(label, database=False)


def complete(record: IdempotencyKey | None, **kwargs: Any) -> None:
    if record is not None and record.namespace == "tests.killed":
        Effect.objects.create(label=f"{record.key} completed")
        die(record.key, "inside the completion")


signals.executed.connect(complete)


@task_postrun.connect
def before_the_ack(task: Any, args: Any, **kwargs: Any) -> None:
    if task.name in (killed.name, killed_redis.name):
        die(args[0], "after the completion")


def paused(where: str, kind: str, go: Path) -> None:
    """Work until somebody touches ``go``; then go on where ``where`` says."""

    def wait(here: str) -> None:
        if here == where:
            print("waiting", flush=True)  # noqa: T201
            while not go.exists():
                time.sleep(0.02)

    def body() -> str:
        wait("before a step")
        step("one", lambda: Effect.objects.create(label="first step").pk)
        if kind == "leased":
            with fenced():
                Effect.objects.create(label="first")
                wait("inside the fence")
        wait("before the completion")
        return "first"

    print(paused_work(kind, body)())  # noqa: T201


def paused_work(kind: str, body: Callable[[], str]) -> Callable[[], str]:
    @idempotent(key="paused", namespace="tests.paused", **OPTIONS[kind])
    def guarded() -> str:
        return body()

    return guarded

"""The audit finds what it is there for: each planted bug is caught, by the check that names it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from django.db import connections, transaction
from django.db.models.functions import Now

from idempotency.models import IdempotencyKey
from tests.faults.ledger import audit, backlog
from tests.faults.planted import BUG, FORGOTTEN_AFTER
from tests.faults.points import stopping
from tests.faults.system import System
from tests.helpers import wait_for
from tests.locks import held_lock
from tests.project.models import Effect
from tests.servers.brokers import open_broker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.brokers import Broker
    from tests.servers.children import Children
    from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)

NUMBER = 50
LOCK = 7


def test_marked_before_publish_is_lost(system: System) -> None:
    """Without the bug: ``test_points.test_killed_at_each_point``."""
    system.commit(f"{n}" for n in range(NUMBER))
    env = {BUG: "marked_before_publish", **stopping("claimed", signal.SIGKILL)}
    relay = system.start_relay(env=env)
    assert relay.wait(30) == -signal.SIGKILL, relay.output()
    system.start_relay()
    system.await_published()
    assert system.undelivered() == 0
    assert audit().violations() == ["lost", "stuck"]
    assert audit().lost == NUMBER


def test_record_outside_is_doubled(system: System) -> None:
    """Without the bug: ``test_points.test_killed_at_each_point``."""
    system.commit(f"{n}" for n in range(NUMBER))
    system.start_relay()
    system.await_published()
    env = {BUG: "record_outside", **stopping("executed", signal.SIGKILL)}
    worker = system.start_worker(ready=False, env=env)
    assert worker.wait(60) == -signal.SIGKILL, worker.output()
    system.start_worker()
    system.await_executed()
    assert audit().violations() == ["doubled"]
    assert audit().doubled == 1


@pytest.mark.parametrize(
    ("bug", "found"), [("", []), ("cursor_polling", ["lost", "stuck"])], ids=["sound", "bug"]
)
def test_cursor_polling_is_stuck(system: System, bug: str, found: list[str]) -> None:
    """A transaction that began first commits last."""
    system.start_relay(env={BUG: bug})
    system.start_worker()
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            system.commit(["slow"])
            pool.submit(_commit_elsewhere, system, "fast").result()
            wait_for(lambda: backlog().executed == 1, message=system.describe)
        system.commit(["last"])
        wait_for(lambda: Effect.objects.filter(label="last").exists(), message=system.describe)
    if not bug:
        system.await_executed()
    assert audit().violations() == found
    assert audit().lost == len(found) // 2


@pytest.mark.parametrize(
    ("bug", "found"), [("", []), ("short_window", ["doubled"])], ids=["sound", "bug"]
)
def test_short_window_is_doubled(system: System, bug: str, found: list[str]) -> None:
    """A worker dies before it acknowledges, and its message comes again after the window."""
    system.start_relay()
    system.commit(["once"])
    worker = system.start_worker(
        ready=False, env={BUG: bug, **stopping("returned", signal.SIGKILL)}
    )
    assert worker.wait(60) == -signal.SIGKILL, worker.output()
    assert backlog().executed == 1
    wait_for(lambda: IdempotencyKey.objects.filter(created_at__lt=Now() - FORGOTTEN_AFTER).exists())
    system.start_worker(env={BUG: bug})
    system.await_executed()
    wait_for(lambda: audit().delivered_again == 1)
    assert audit().violations() == found


@pytest.mark.parametrize(
    ("bug", "found"),
    [("", []), ("ordering_gate_removed", ["out_of_order"])],
    ids=["sound", "bug"],
)
def test_ordering_gate_removed_is_out_of_order(system: System, bug: str, found: list[str]) -> None:
    """The first of a key is slow, and another worker is free."""
    system.start_relay(env={BUG: bug})
    system.start_worker(concurrency=2)
    with held_lock(LOCK):
        system.commit(["first"], lock=LOCK, ordering_key="key")
        system.commit(["second", "third"], ordering_key="key")
        system.commit(["free"])
        expected = 3 if bug else 1
        wait_for(lambda: Effect.objects.count() == expected, message=system.describe)
    system.await_executed()
    assert audit().violations() == found


def _commit_elsewhere(system: System, label: str) -> None:
    """In a transaction of its own."""
    try:
        system.commit([label])
    finally:
        connections.close_all()


@pytest.fixture
def other(children: Children, broker: Broker, rabbitmq: RabbitMQ) -> Iterator[System]:
    """A second system on the same server, so that one fault shows what two relays make of it."""
    for second in open_broker("rabbitmq", rabbitmq):
        yield System(children, second, "other")


@pytest.mark.slow
@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_no_confirms_is_lost(system: System, other: System, rabbitmq: RabbitMQ) -> None:
    """RabbitMQ freezes with messages on their way to it, then dies."""
    system.start_relay(env={BUG: "no_confirms"})
    sound = other.start_relay(env={"OUTBOX_CLAIM_TIMEOUT": "3"})
    for each in (system, other):
        each.commit(["before"])
        each.await_published()
    os.kill(rabbitmq.pid, signal.SIGSTOP)
    for each in (system, other):
        each.commit(f"{n}" for n in range(NUMBER))
    system.await_published()
    wait_for(lambda: "The broker is unavailable" in sound.output(), message=sound.output)
    rabbitmq.kill()
    rabbitmq.start()

    for each in (system, other):
        each.start_worker()
    other.await_executed()
    assert audit("other").violations() == []
    wait_for(lambda: backlog().executed == 1, message=system.describe)
    assert system.undelivered() == 0
    assert audit().violations() == ["lost", "stuck"]
    assert audit().lost == NUMBER

"""A minute without the broker, under load: nobody's fault, and two lines in the log."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING

import pytest
from django.db import connections

from tests.faults.ledger import audit, backlog
from tests.faults.system import System
from tests.helpers import wait_for
from tests.servers.brokers import open_broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sample_project.servers import ValkeyServer
    from tests.servers.brokers import Broker
    from tests.servers.children import Children

OUTAGE = 60.0  # seconds
PACE = 0.1  # seconds between a producer's commits
LOST_PATIENCE = 180.0  # seconds after which a producer stops by itself


@pytest.fixture
def systems(children: Children, broker: Broker, valkey: ValkeyServer) -> Iterator[list[System]]:
    """One on each broker, side by side, so that the minute passes once."""
    for second in open_broker("valkey", valkey):
        yield [System(children, broker), System(children, second, "other")]


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_broker_is_down_for_a_minute(systems: list[System], tell: Callable[[str], None]) -> None:
    relays = [relay for system in systems for relay in system.start_relays(2)]
    done = threading.Event()
    with ThreadPoolExecutor(len(systems)) as pool:
        producers = [pool.submit(_produce, system, done) for system in systems]
        try:
            for system in systems:
                _await_published(system, 50)
            for system in systems:
                system.broker.server.stop()
            back_at = time.monotonic() + OUTAGE
            wait_for(lambda: time.monotonic() > back_at, timeout=OUTAGE + 5, interval=0.5)
            waiting = [backlog(system.using).pending for system in systems]
            for system in systems:
                assert audit(system.using).blamed == 0
            for relay in relays:
                assert relay.output().count("The broker is unavailable") == 1, relay.output()
            for system in systems:
                system.broker.server.start()
            for relay in relays:
                wait_for(lambda relay=relay: "Available again" in relay.output())  # type: ignore[misc]
        finally:
            done.set()
        committed = [producer.result(timeout=10) for producer in producers]

    for system in systems:
        system.start_worker(ready=False)
    for system, pending, number in zip(systems, waiting, committed, strict=True):
        system.await_executed()
        ledger = audit(system.using)
        assert ledger.violations() == [], str(ledger)
        assert ledger.committed == number
        assert pending > OUTAGE, "void: no load during the outage"
        tell(f"{system.broker.name}: {pending} waited for the broker; {ledger}")
    for relay in relays:
        assert relay.output().count("The broker is unavailable") == 1, relay.output()
        assert relay.output().count("Available again") == 1, relay.output()


def test_broker_freezes(system: System) -> None:
    """A broker that takes connections and never answers is unavailable, and no message's fault."""
    relay = system.start_relay(env={"OUTBOX_CLAIM_TIMEOUT": "3"})
    system.commit(["before"])
    system.await_published()
    os.kill(system.broker.server.pid, signal.SIGSTOP)
    try:
        system.commit(f"{n}" for n in range(20))
        wait_for(lambda: "The broker is unavailable" in relay.output(), message=relay.output)
    finally:
        os.kill(system.broker.server.pid, signal.SIGCONT)
    wait_for(lambda: "Available again" in relay.output(), message=relay.output)
    system.start_worker()
    system.await_executed()
    assert audit().violations() == [], str(audit())


def _produce(system: System, done: threading.Event) -> int:
    """Commit until told to stop; return how many messages."""
    deadline = time.monotonic() + LOST_PATIENCE
    numbers = count()
    try:
        while not done.wait(PACE) and time.monotonic() < deadline:
            system.commit(f"{next(numbers)}" for _ in range(2))
    finally:
        connections.close_all()
    return next(numbers)


def _await_published(system: System, number: int) -> None:
    wait_for(lambda: backlog(system.using).published >= number, message=system.describe)

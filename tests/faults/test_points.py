"""Relays and workers that stop at the worst moments: killed there, or paused past their claim."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults.ledger import audit, backlog
from tests.faults.points import stopping
from tests.helpers import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.system import System

RELAY_POINTS = ("claimed", "published", "settled")
EACH = 20  # messages for each point


@pytest.mark.slow
def test_killed_at_each_point(system: System, tell: Callable[[str], None]) -> None:
    for point in RELAY_POINTS:
        system.commit(f"{point}-{n}" for n in range(EACH))
        relay = system.start_relay(env=stopping(point, signal.SIGKILL))
        assert relay.wait(30) == -signal.SIGKILL, relay.output()
        assert backlog().pending == (RELAY_POINTS.index(point) + 1) * EACH
    system.start_relay()
    system.await_published()

    worker = system.start_worker(ready=False, env=stopping("executed", signal.SIGKILL))
    assert worker.wait(30) == -signal.SIGKILL, worker.output()
    assert backlog().executed == 0
    system.start_worker()
    system.await_executed()
    ledger = audit()
    assert ledger.violations() == [], str(ledger)
    assert ledger.published_again >= 2 * EACH, "those whose relay died after it had published"
    tell(str(ledger))


def test_paused_relay_loses_its_claim(system: System, tell: Callable[[str], None]) -> None:
    paused = []
    for point in RELAY_POINTS:
        system.commit(f"{point}-{n}" for n in range(EACH))
        env = {"OUTBOX_CLAIM_TIMEOUT": "1", **stopping(point, signal.SIGSTOP)}
        relay = system.start_relay(env=env)
        wait_for(lambda relay=relay: relay.stopped, message=relay.output)  # type: ignore[misc]
        paused.append(relay)
    other = system.start_relay()
    system.await_published()
    other.kill()

    for relay in paused:
        relay.cont_signal()
    for relay in paused:
        wait_for(lambda relay=relay: "Available again" in relay.output(), message=relay.output)  # type: ignore[misc]
        assert relay.output().count("The database 'default' is unavailable") == 1
    system.commit(f"afterwards-{n}" for n in range(EACH))
    system.start_worker()
    system.await_executed()
    assert all(relay.running for relay in paused)
    ledger = audit()
    assert ledger.violations() == [], str(ledger)
    assert ledger.published_again >= 2 * EACH
    tell(str(ledger))

"""A broker that forgets what it confirmed: the messages come again, and take effect once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.ledger import audit, backlog
from tests.helpers import wait_for

if TYPE_CHECKING:
    from tests.faults.system import System

EACH = 50


def test_broker_forgets(system: System) -> None:
    system.start_relay(env={"OUTBOX_REDELIVER_AFTER": "3"})
    worker = system.start_worker()
    system.commit(f"executed-{n}" for n in range(EACH))
    wait_for(lambda: backlog().executed == EACH, message=system.describe)
    worker.stop()
    forgotten = system.commit(f"forgotten-{n}" for n in range(EACH))
    system.await_published()
    # The stopped worker may have given back one that it had executed and not acknowledged.
    assert set(system.take_message_ids()) >= set(forgotten)

    system.start_worker()
    system.await_executed()
    ledger = audit()
    assert ledger.violations() == [], str(ledger)
    assert ledger.redelivered >= EACH


def test_broker_loses_everything(system: System) -> None:
    """FLUSHALL, or a deleted volume: queues and bindings are gone as well."""
    relay = system.start_relay(env={"OUTBOX_REDELIVER_AFTER": "2"})
    system.start_worker()
    system.commit(f"executed-{n}" for n in range(EACH))
    system.await_executed()
    relay.stop_signal()
    system.broker.wipe()
    relay.cont_signal()
    system.commit(f"afterwards-{n}" for n in range(EACH))
    system.await_executed()
    assert audit().violations() == [], str(audit())

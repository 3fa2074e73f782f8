"""A broker that forgets what it confirmed: the messages come again, and take effect once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def test_bindings_that_were_lost_are_made_again(system: System) -> None:
    """A relay that is not told of it (FLUSHALL) finds out when the receipt does not come."""
    system.start_relay(env={"OUTBOX_REDELIVER_AFTER": "1"})
    behind_exchange: dict[str, Any] = {"queue": "topical", "routing_key": "topic.x"}
    system.commit(["before"], **behind_exchange)
    wait_for(lambda: system.broker.queue_length("topical") == 1, message=system.describe)
    system.broker.wipe()
    system.commit(["afterwards"], **behind_exchange)
    # The other one waits until it cannot be in the queue any more.
    wait_for(lambda: system.broker.queue_length("topical") >= 1, message=system.describe)

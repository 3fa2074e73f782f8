"""A relay's rows are another's: at once when it is killed, within the claim's bound when paused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.ledger import audit
from tests.faults.members import Member
from tests.faults.network import Network
from tests.faults.trail import note_held, trail
from tests.helpers import wait_for
from tests.project.models import Held, Settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.system import System

EACH = 50
POLL_INTERVAL = 1.0  # seconds, of the relay that takes over
SLACK = 1.0  # seconds that a busy machine may add
CLAIM_TIMEOUT = 3.0  # of the relay that is paused


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network, trail():
        yield network


def holding(system: System, network: Network, **env: str) -> tuple[Member, Member]:
    """Start two relays: the first holds a claim, because its broker does not answer."""
    holder = Member("relay-1", system, network, env)
    other = Member("relay-2", system, network, {"OUTBOX_POLL_INTERVAL": str(POLL_INTERVAL)})
    # It shall look for messages when the first one holds them, and not earlier.
    other.database.hang()
    for relay in (holder, other):
        relay.start()
    wait_for(lambda: other.database.ends, message=other.output)
    system.commit(["before"])
    system.await_published()
    holder.broker.hang(answers_only=True)
    system.commit(f"{n}" for n in range(EACH))
    if system.broker.is_amqp:
        # All of it was published, and no confirm has come. Of Valkey it asks something first.
        wait_for(lambda: system.undelivered() == EACH + 1, message=system.describe)
    wait_for(lambda: note_held(holder.name) == EACH, message=system.describe)
    other.database.heal()
    wait_for(other.is_ready, message=other.output)
    return holder, other


def taken_over() -> float:
    """Return the seconds from when the first relay was seen with its claim to the last takeover."""
    settled = Settled.objects.filter(
        relay="relay-2", message_id__in=Held.objects.values("message_id")
    )
    wait_for(lambda: settled.count() == EACH)
    return (settled.latest("at").at - Held.objects.earliest("at").at).total_seconds()


def test_a_killed_relays_messages_are_anothers_within_a_poll_interval(
    system: System, network: Network, tell: Callable[[str], None]
) -> None:
    # What the server would do about it comes much too late.
    holder, _ = holding(system, network, OUTBOX_CLAIM_TIMEOUT="60")
    holder.kill()
    seconds = taken_over()
    assert seconds < POLL_INTERVAL + SLACK
    tell(f"{EACH} messages taken over after {seconds:.2f} s, polling every {POLL_INTERVAL} s")
    assert_executed(system)


def test_a_paused_relays_messages_are_anothers_within_the_claim_timeout(
    system: System, network: Network, tell: Callable[[str], None]
) -> None:
    holder, _ = holding(system, network, OUTBOX_CLAIM_TIMEOUT=str(CLAIM_TIMEOUT))
    holder.pause()
    seconds = taken_over()
    assert seconds < CLAIM_TIMEOUT + POLL_INTERVAL + SLACK
    tell(f"{EACH} messages taken over after {seconds:.2f} s, of a claim of {CLAIM_TIMEOUT} s")
    holder.broker.heal()
    holder.resume()
    wait_for(lambda: "Available again" in holder.output(), message=holder.output)
    assert_executed(system)
    assert not Settled.objects.filter(
        relay="relay-1", message_id__in=Held.objects.values("message_id")
    )


def assert_executed(system: System) -> None:
    system.start_worker()
    system.await_executed()
    ledger = audit()
    assert ledger.violations() == [], str(ledger)
    assert ledger.published_again >= (EACH if system.broker.is_amqp else 0)
    assert ledger.taken_over == EACH

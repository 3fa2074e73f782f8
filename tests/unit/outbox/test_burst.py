"""Full batches overlap; whatever ends a burst, nothing stays locked and nothing is forgotten."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connection, connections, transaction

from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.publisher import Publisher
from outbox.querysets import OutboxQuerySet
from outbox.relay import Relay, RelayResult
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.outbox.conftest import MemoryBroker

record: Any = tasks.record
messages = OutboxMessage.objects

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def relay(memory_broker: MemoryBroker) -> Iterator[Relay]:
    with closing(Relay(batch_size=2)) as relay:
        yield relay


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a relay does to the database, and on which of its connections."""
    told: list[str] = []
    wrappers: list[object] = []

    def telling(name: str) -> None:
        method = getattr(OutboxQuerySet, name)

        def tell(self: OutboxQuerySet, *args: Any) -> Any:
            done = method(self, *args)
            if done:
                wrapper = connections[self.db]
                if wrapper not in wrappers:
                    wrappers.append(wrapper)
                told.append(f"{name} {wrappers.index(wrapper)}")
            return done

        monkeypatch.setattr(OutboxQuerySet, name, tell)

    telling("claim")
    telling("settle")
    return told


def enqueue(number: int) -> list[str]:
    with transaction.atomic():
        return [str(row.pk) for row in messages.enqueue_many([record.s("x")] * number)]


def assert_nothing_is_locked() -> None:
    with transaction.atomic():
        assert messages.select_for_update(nowait=True).count() == messages.count()
        list(messages.select_for_update(nowait=True))


def test_a_full_batch_is_settled_when_the_next_one_is_on_its_way(
    relay: Relay, memory_broker: MemoryBroker, steps: list[str]
) -> None:
    ids = enqueue(9)
    assert relay.drain() == RelayResult(published=9)
    assert memory_broker.ids() == ids
    assert messages.published().count() == 9
    assert steps == [
        *("claim 0", "settle 0"),
        *("claim 0", "claim 1", "settle 0", "claim 0", "settle 1", "claim 1", "settle 0"),
        "settle 1",
    ]


def test_what_does_not_fill_a_batch_needs_no_second_connection(
    relay: Relay, steps: list[str]
) -> None:
    enqueue(1)
    assert relay.drain() == RelayResult(published=1)
    assert steps == ["claim 0", "settle 0"]
    assert relay._burst._second is None


def test_a_relay_goes_on_after_a_burst(relay: Relay, memory_broker: MemoryBroker) -> None:
    ids = enqueue(4)
    assert relay.drain() == RelayResult(published=4)
    ids += enqueue(5)
    assert relay.drain() == RelayResult(published=5)
    assert memory_broker.ids() == ids


@pytest.mark.parametrize("results", range(1, 8))
def test_a_burst_that_is_stopped_settles_what_was_published_and_lets_go_of_the_rest(
    results: int, relay: Relay, memory_broker: MemoryBroker
) -> None:
    enqueue(20)
    with closing(relay._results()) as running:
        for _ in range(results):
            next(running)
    published = {str(row.pk) for row in messages.published()}
    assert published == set(memory_broker.ids())
    assert len(published) >= 2 * results
    assert_nothing_is_locked()


def failing_once(method: Callable[..., Any], error: Exception, call: int) -> Callable[..., Any]:
    calls = iter(range(1, 1000))

    def failing(*args: Any) -> Any:
        if next(calls) == call:
            raise error
        return method(*args)

    return failing


@pytest.mark.parametrize("name", ["claim", "settle"])
@pytest.mark.parametrize("call", [2, 3, 4])
def test_an_error_of_the_database_ends_a_burst_and_only_that(
    name: str, call: int, relay: Relay, memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = enqueue(12)
    failing = failing_once(getattr(OutboxQuerySet, name), OperationalError("gone"), call)
    monkeypatch.setattr(OutboxQuerySet, name, failing)
    with pytest.raises(OperationalError, match="gone"):
        relay.drain()
    assert_nothing_is_locked()
    published = {str(row.pk) for row in messages.published()}
    assert published <= set(memory_broker.ids())
    relay.drain()
    assert messages.published().count() == 12
    assert set(memory_broker.ids()) == set(ids)
    # What was published and could not be settled went out again.
    assert len(memory_broker.ids()) <= 12 + 2


@pytest.mark.parametrize("name", ["publish", "await_confirms"])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_an_error_of_its_own_lets_go_of_every_batch(
    name: str, call: int, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue(12)
    failing = failing_once(getattr(Publisher, name), LookupError("a bug"), call)
    monkeypatch.setattr(Publisher, name, failing)
    with pytest.raises(LookupError):
        relay.drain()
    assert_nothing_is_locked()
    assert connection.in_atomic_block is False
    relay.drain()
    assert messages.published().count() == 12


@pytest.mark.parametrize("call", [2, 3, 4])
def test_an_outage_in_a_burst_counts_nothing(
    call: int, relay: Relay, memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue(12)
    connected = failing_once(Publisher._connected, BrokerUnavailable("away"), call + 1)
    monkeypatch.setattr(Publisher, "_connected", connected)
    with pytest.raises(BrokerUnavailable, match="away"):
        relay.drain()
    assert_nothing_is_locked()
    assert set(messages.values_list("attempts", flat=True)) == {0}
    assert messages.published().count() == len(set(memory_broker.ids()))
    relay.drain()
    assert messages.published().count() == 12

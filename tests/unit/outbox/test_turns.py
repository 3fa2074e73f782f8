"""What a relay does for ordering keys, and that it does nothing where there are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from outbox import turns
from outbox.models import OutboxMessage
from outbox.relay import Relay, RelayResult
from outbox.turns import Turns
from tests.project import tasks
from tests.unit.outbox.rows import MOMENT, message

if TYPE_CHECKING:
    from tests.unit.outbox.conftest import MemoryBroker

record: Any = tasks.record
record_once: Any = tasks.record_once
messages = OutboxMessage.objects

pytestmark = pytest.mark.django_db


@pytest.fixture
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SWEEP", 1e9)


def line(number: int = 3, key: str = "k", task: Any = record) -> list[str]:
    with transaction.atomic():
        rows = [messages.enqueue(task.s("x"), ordering_key=key) for _ in range(number)]
    return [str(row.pk) for row in rows]


def test_unguarded_messages_of_a_key_are_published_in_order(
    relay: Relay, memory_broker: MemoryBroker
) -> None:
    a, b, c = line(3, "a"), line(2, "b"), line(1, "c")
    results = [relay.run_once().published for _ in range(4)]
    assert results == [3, 2, 1, 0]
    assert memory_broker.ids() == [a[0], b[0], c[0], a[1], b[1], a[2]]


def test_a_drain_publishes_all_of_them(relay: Relay, memory_broker: MemoryBroker) -> None:
    ids = line(5)
    assert relay.drain() == RelayResult(published=5)
    assert memory_broker.ids() == ids


def test_guarded_ones_wait_for_the_receipt(relay: Relay, memory_broker: MemoryBroker) -> None:
    ids = line(2, task=record_once)
    assert relay.drain() == RelayResult(published=1)
    messages.mark_executed(messages.get(pk=ids[0]).pk)
    assert relay.drain() == RelayResult(published=1)
    assert memory_broker.ids() == ids


@pytest.mark.parametrize("task", [record, record_once])
def test_an_expired_one_is_passed_over(
    relay: Relay, memory_broker: MemoryBroker, task: Any
) -> None:
    ids = line(2, task=task)
    messages.filter(pk=ids[0]).update(expires_at=MOMENT)
    assert relay.drain() == RelayResult(expired=1, published=1)
    assert memory_broker.ids() == ids[1:]


def test_one_that_expired_without_a_receipt_is_passed_over(
    relay: Relay, memory_broker: MemoryBroker
) -> None:
    ids = line(2, task=record_once)
    relay.drain()
    messages.filter(pk=ids[0]).update(expires_at=MOMENT, available_at=MOMENT)
    assert relay.drain() == RelayResult(expired=1, published=1)
    assert memory_broker.ids() == ids


def test_a_redelivery_keeps_the_turn(relay: Relay, memory_broker: MemoryBroker) -> None:
    ids = line(2, task=record_once)
    relay.drain()
    memory_broker.lose()
    messages.filter(pk=ids[0]).update(available_at=MOMENT)
    assert relay.drain() == RelayResult(published=1)
    assert memory_broker.ids() == ids[:1]


def test_one_whose_row_cannot_be_read_is_dead_and_holds_its_key(relay: Relay) -> None:
    ids = line(2)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE outbox_outboxmessage SET headers = '{' WHERE id = %s", [ids[0]])
    assert relay.drain() == RelayResult(dead=1)
    assert str(messages.open_of("k").values_list("pk", flat=True).get()) == ids[0]
    assert messages.dead().discard() == 1
    assert relay.drain() == RelayResult(published=1)


def test_the_burst_does_it_too(
    memory_broker: MemoryBroker, transactional_db: None, no_sweep: None
) -> None:
    keys = [line(3, key) for key in "abcd"]
    relay = Relay(batch_size=2)
    assert relay.drain() == RelayResult(published=12)
    relay.close()
    published = memory_broker.ids()
    for ids in keys:
        assert [id for id in published if id in ids] == ids


# Queries


def queries_of_a_round(relay: Relay) -> list[str]:
    with CaptureQueriesContext(connection) as queries:
        relay.run_once()
    return [q["sql"] for q in queries if "SAVEPOINT" not in q["sql"]]


def test_a_batch_without_keys_makes_no_further_query(relay: Relay, no_sweep: None) -> None:
    message()
    relay.run_once()
    message()
    queries = queries_of_a_round(relay)
    assert [sql.split()[0] for sql in queries] == ["SELECT", "WITH", "UPDATE"]
    assert not any("orderingkey" in sql for sql in queries)


def test_an_idle_relay_looks_for_idle_keys_once_in_a_while(relay: Relay, no_sweep: None) -> None:
    assert any("RECURSIVE walk" in sql for sql in queries_of_a_round(relay))
    assert not any("RECURSIVE walk" in sql for sql in queries_of_a_round(relay))


def test_one_query_finds_the_turns_of_a_batch(relay: Relay, no_sweep: None) -> None:
    relay.run_once()
    for key in "abcdef":
        line(2, key)
    queries = queries_of_a_round(relay)
    assert len([sql for sql in queries if "orderingkey" in sql]) == 1
    assert len([sql for sql in queries if "blocked = false" in sql]) == 1


# What nobody else goes on with


def test_a_relay_goes_on_with_what_another_has_left(
    relay: Relay, memory_broker: MemoryBroker
) -> None:
    first, second = line(2)
    # Settled, and killed before it could go on with the key, which a producer held.
    messages.settle([messages.get(pk=first).pk])
    assert relay.drain() == RelayResult(published=1)
    assert memory_broker.ids() == [second]


def test_the_sweep_goes_through_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SWEPT_KEYS", 2)
    monkeypatch.setattr(turns, "SWEEP", 0.0)
    for key in "abcde":
        line(2, key)
    messages.filter(blocked=False).update(status="discarded", available_at=None)
    sweeping = Turns("default")
    opened = []
    for _ in range(3):
        sweeping.give()
        opened.append(messages.filter(blocked=False, status="pending").count())
    assert opened == [2, 4, 5]


def test_what_was_held_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, no_sweep: None, transactional_db: None
) -> None:
    first, second = line(2)
    giving = Turns("default")
    giving.give()
    messages.settle([messages.get(pk=first).pk])
    with monkeypatch.context() as held:
        held.setattr(turns, "advance_free", lambda using, keys: set(keys))
        giving.give(["k"])
    assert not messages.due().exists()
    giving.give()
    assert [str(row.pk) for row in messages.due()] == [second]

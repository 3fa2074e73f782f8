"""Those who meet at an ordering key: each waits for the lock it should, and none for ever."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from celery import current_app
from django.db import connection, connections, transaction

from outbox.models import OrderingKey, OutboxMessage
from outbox.ordering_querysets import advance, advance_free, purge_keys
from tests.helpers import wait_for
from tests.project import tasks
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

record: Any = tasks.record
record_once: Any = tasks.record_once
messages = OutboxMessage.objects

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]

# Not pg_stat_activity, which stands still inside a transaction.
WAITING = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"


class Other:
    """Somebody else, with a connection of its own, who does one thing after the other."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def does(self, work: Callable[[], Any]) -> Any:
        return self._pool.submit(work).result(timeout=30)

    def begins(self, work: Callable[[], Any]) -> Future[Any]:
        return self._pool.submit(work)

    def waits_in(self, work: Callable[[], Any]) -> Future[Any]:
        """Begin what waits for a lock; return when it waits."""
        before = waiting()
        begun = self.begins(work)
        wait_for(lambda: waiting() > before or begun.done())
        assert not begun.done(), "it waits for nobody"
        return begun

    def close(self) -> None:
        self.does(connections.close_all)
        self._pool.shutdown()


@pytest.fixture
def other() -> Iterator[Other]:
    with others(1) as (one,):
        yield one


@contextmanager
def others(number: int) -> Iterator[list[Other]]:
    every = [Other() for _ in range(number)]
    try:
        yield every
    finally:
        for each in every:
            each.close()


def waiting() -> int:
    with connection.cursor() as cursor:
        cursor.execute(WAITING)
        return int(cursor.fetchone()[0])


def enqueue(label: str, key: str = "k", task: Any = record_once) -> OutboxMessage:
    with transaction.atomic():
        return messages.enqueue(task.s(label), ordering_key=key)


def publish(row: OutboxMessage) -> None:
    messages.settle([row.pk])


def execute(row: OutboxMessage) -> None:
    """As a worker does, in the guard's transaction."""
    task = current_app.tasks[row.task]
    args, kwargs = row.arguments(["application/json"])
    task.apply(args, kwargs, task_id=str(row.pk), headers=dict(row.headers), throw=True)


def turns(rows: list[OutboxMessage]) -> list[str]:
    for row in rows:
        row.refresh_from_db()
    return ["blocked" if row.blocked else row.status for row in rows]


def test_a_guarded_execution_makes_it_the_next_ones_turn() -> None:
    rows = [enqueue("1"), enqueue("2")]
    publish(rows[0])
    execute(rows[0])
    assert turns(rows) == ["executed", "pending"]


def test_a_duplicate_does_it_again_and_nothing_happens() -> None:
    rows = [enqueue("1"), enqueue("2"), enqueue("3")]
    for _ in range(3):
        execute(rows[0])
    assert turns(rows) == ["executed", "pending", "blocked"]


def test_an_execution_that_is_rolled_back_makes_nothing() -> None:
    rows = [enqueue("1", task=tasks.fail_guarded), enqueue("2")]
    publish(rows[0])
    with pytest.raises(RuntimeError):
        execute(rows[0])
    assert turns(rows) == ["published", "blocked"]


# A producer and a receipt at the same moment


def test_the_receipt_comes_while_a_producer_holds_the_key(other: Other) -> None:
    first = enqueue("1")
    publish(first)
    with transaction.atomic():
        second = enqueue("2")
        assert second.blocked
        receipt = other.waits_in(lambda: execute(first))
    receipt.result(timeout=30)
    assert turns([first, second]) == ["executed", "pending"]


def test_the_producer_comes_while_a_receipt_holds_the_key(other: Other) -> None:
    first = enqueue("1")
    publish(first)
    with transaction.atomic():
        execute(first)
        produced = other.waits_in(lambda: enqueue("2"))
    second = produced.result(timeout=30)
    assert turns([first, second]) == ["executed", "pending"]


def test_a_producer_that_rolls_back_leaves_its_turn_to_the_one_that_waited(other: Other) -> None:
    with transaction.atomic():
        enqueue("never")
        produced = other.waits_in(lambda: enqueue("2"))
        transaction.set_rollback(True)
    second = produced.result(timeout=30)
    assert (second.sequence, turns([second])) == (1, ["pending"])


def test_a_task_may_enqueue_to_its_own_key(other: Other) -> None:
    first = enqueue("1")
    publish(first)
    with transaction.atomic():
        second = enqueue("2")
        execute(first)
        later = other.waits_in(lambda: enqueue("3"))
    assert turns([first, second, later.result(timeout=30)]) == ["executed", "pending", "blocked"]


# Producers


def test_producers_of_many_keys_in_any_order_end() -> None:
    """Each transaction takes them sorted: nobody holds one for which a holder of his waits."""
    meet = threading.Barrier(2)

    def produce(keys: list[str]) -> None:
        for _ in range(20):
            meet.wait(timeout=30)
            with transaction.atomic():
                messages.enqueue_many([record.s("x") for _ in keys], ordering_keys=keys)

    with others(2) as (one, two):
        begun = [
            one.begins(lambda: produce(["b", "a", "c", "a"])),
            two.begins(lambda: produce(["c", "b", "b", "a"])),
        ]
        for each in begun:
            each.result(timeout=60)
    lasts = dict(OrderingKey.objects.values_list("key", "last_sequence"))
    assert lasts == {"a": 60, "b": 60, "c": 40}
    assert messages.filter(blocked=False).count() == 3


def test_keys_are_taken_in_their_order_whatever_the_callers(other: Other) -> None:
    def produce() -> None:
        with transaction.atomic():
            messages.enqueue_many([record.s("x")] * 3, ordering_keys=["c", "b", "a"])

    for key in "abc":
        enqueue("1", key)
    with others(1) as (third,):
        with transaction.atomic():
            enqueue("2", "b")
            produced = other.waits_in(produce)
            held = third.does(lambda: advance_free("default", {"a", "b", "c"}))
        produced.result(timeout=30)
    assert held == {"a", "b"}


def test_the_sequence_is_the_order_of_commits() -> None:
    """Who has a key is the next of its producers to commit."""
    meet = threading.Barrier(3)

    def produce(name: str) -> None:
        for number in range(15):
            meet.wait(timeout=30)
            with transaction.atomic():
                row = enqueue(name)
                Effect.objects.create(label=f"{row.sequence}:{name} {number}")

    with others(3) as every:
        begun = [
            each.begins(partial(produce, name)) for name, each in zip("abc", every, strict=True)
        ]
        for each in begun:
            each.result(timeout=60)
    labels = Effect.objects.order_by("pk").values_list("label", flat=True)
    sequences = [int(label.partition(":")[0]) for label in labels]
    assert sequences == list(range(1, 46))


# By hand


def test_a_discard_and_the_receipt_of_the_open_one(other: Other) -> None:
    rows = [enqueue("1"), enqueue("2"), enqueue("3")]
    publish(rows[0])
    with transaction.atomic():
        assert messages.filter(pk=rows[1].pk).discard() == 1
        receipt = other.waits_in(lambda: execute(rows[0]))
    receipt.result(timeout=30)
    assert turns(rows) == ["executed", "discarded", "pending"]


def test_the_receipt_of_the_open_one_and_a_discard_of_all(other: Other) -> None:
    rows = [enqueue("1"), enqueue("2"), enqueue("3")]
    publish(rows[0])
    with transaction.atomic():
        execute(rows[0])
        discarded = other.waits_in(lambda: messages.filter(pk__in=[r.pk for r in rows]).discard())
    assert discarded.result(timeout=30) == 2
    assert turns(rows) == ["executed", "discarded", "discarded"]


def test_a_retry_never_runs_beside_a_later_one(other: Other) -> None:
    rows = [enqueue("1"), enqueue("2")]
    messages.expire([rows[0].pk])
    with transaction.atomic():
        advance("default", ["k"])
        retried = other.waits_in(lambda: messages.expired().retry())
    assert retried.result(timeout=30) == 1
    assert turns(rows) == ["blocked", "pending"]


# A receipt that comes late, for a message that waits to be published again


@pytest.fixture
def late() -> list[OutboxMessage]:
    """Two of a key: the first expired, was retried, and waits for the second."""
    rows = [enqueue("1"), enqueue("2"), enqueue("3")]
    publish(rows[0])
    messages.expire([rows[0].pk])
    with transaction.atomic():
        advance("default", ["k"])
    assert messages.expired().retry() == 1
    publish(rows[1])
    assert turns(rows) == ["blocked", "published", "blocked"]
    return rows


def test_who_goes_on_with_a_key_leaves_a_message_to_its_late_receipt(
    late: list[OutboxMessage], other: Other
) -> None:
    with transaction.atomic():
        # The late receipt has its message; the other's waits for nothing of it.
        messages.filter(pk=late[0].pk).update(blocked=False, status="discarded", available_at=None)
        other.does(lambda: execute(late[1]))
    assert turns(late) == ["discarded", "executed", "blocked"]
    advance("default", ["k"])
    assert turns(late) == ["discarded", "executed", "pending"]


def test_two_receipts_of_a_key_wait_for_each_other_in_turn(
    late: list[OutboxMessage], other: Other
) -> None:
    with transaction.atomic():
        execute(late[1])
        receipt = other.begins(lambda: execute(late[0]))
        wait_for(lambda: waiting() == 1)
    receipt.result(timeout=30)
    assert turns(late) == ["executed", "executed", "pending"]


# A relay waits for nobody


def test_a_key_that_a_producer_holds_is_left_for_later(other: Other) -> None:
    rows = [enqueue("1", task=record), enqueue("2", task=record), enqueue("1", "free", record)]
    waits = enqueue("2", "free", record)
    with transaction.atomic():
        enqueue("3", task=record)
        other.does(lambda: messages.settle([rows[0].pk, rows[2].pk]))
        assert other.does(lambda: advance_free("default", {"k", "free"})) == {"k"}
    assert turns([*rows, waits]) == ["published", "blocked", "published", "pending"]
    assert advance_free("default", {"k"}) == set()
    assert turns(rows) == ["published", "pending", "published"]


def test_a_purge_leaves_a_key_that_somebody_holds(other: Other) -> None:
    enqueue("1").delete()
    enqueue("1", "free").delete()
    with transaction.atomic():
        second = enqueue("2")
        assert other.does(lambda: purge_keys("default")) == 1
    assert second.sequence == 2
    assert OrderingKey.objects.get().key == "k"


def test_a_producer_that_waits_for_a_purge_makes_the_key_anew(other: Other) -> None:
    row = enqueue("1")
    messages.filter(pk=row.pk).delete()
    with transaction.atomic():
        assert purge_keys("default") == 1
        produced = other.waits_in(lambda: enqueue("2"))
    assert produced.result(timeout=30).sequence == 1
    assert OrderingKey.objects.get().last_sequence == 1


def test_a_receipt_of_a_message_that_is_gone_is_no_error() -> None:
    row = enqueue("1")
    messages.filter(pk=row.pk).delete()
    purge_keys("default")
    execute(row)
    assert Effect.objects.count() == 1

"""Ordering keys: one open message of each, in the order of commits, whatever becomes of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import chain, group
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from outbox import ordering_querysets
from outbox.exceptions import DuplicateKey
from outbox.models import OrderingKey, OutboxMessage
from outbox.ordering_querysets import advance, advance_free, idle_keys, purge_keys
from outbox.relay_querysets import CLAIM, Refusal
from tests.project import tasks
from tests.unit.outbox.rows import MOMENT, empty_table, message, status_of

record: Any = tasks.record
record_once: Any = tasks.record_once
messages = OutboxMessage.objects

pytestmark = [pytest.mark.django_db(databases=["default", "other"]), pytest.mark.database]

HOUR = timedelta(hours=1)


def enqueue(label: str, key: str = "k", task: Any = record_once, **options: Any) -> OutboxMessage:
    with transaction.atomic():
        return messages.enqueue(task.s(label).set(**options), ordering_key=key)


def line(number: int = 3, key: str = "k", task: Any = record_once) -> list[OutboxMessage]:
    return [enqueue(str(place), key, task) for place in range(1, number + 1)]


def open_ids(key: str = "k") -> list[Any]:
    return list(messages.filter(ordering_key=key).open_of(key).values_list("pk", flat=True))


def turns(rows: list[OutboxMessage]) -> list[str]:
    """Whose turn it is: the state of each, and whether it waits."""
    for row in rows:
        row.refresh_from_db()
    return ["blocked" if row.blocked else row.status for row in rows]


# Enqueue


def test_the_first_of_a_key_is_open_and_the_others_wait() -> None:
    rows = line()
    assert [(row.sequence, row.blocked) for row in rows] == [(1, False), (2, True), (3, True)]
    assert turns(rows) == ["pending", "blocked", "blocked"]
    assert [claimed.id for claimed in messages.claim(10, 10**6)] == [rows[0].pk]
    assert list(messages.due()) == rows[:1]
    assert list(messages.blocked().order_by("sequence")) == rows[1:]


def test_each_key_has_a_line_of_its_own() -> None:
    rows = [enqueue("1", key) for key in ("a", "b", "a", "B", "ä")]
    assert [row.sequence for row in rows] == [1, 1, 2, 1, 1]
    assert [row.blocked for row in rows] == [False, False, True, False, False]


def test_many_with_their_keys_in_any_order() -> None:
    rows = messages.enqueue_many(
        [record.s(str(place)) for place in range(6)],
        keys=[f"intent {place}" for place in range(6)],
        ordering_keys=["b", "a", "", "b", "a", "b"],
    )
    assert [row.sequence for row in rows] == [1, 1, None, 2, 2, 3]
    assert [row.blocked for row in rows] == [False, False, False, True, True, True]
    for row in rows:
        told = {name: getattr(row, name) for name in ("sequence", "blocked", "available_at")}
        row.refresh_from_db()
        assert told == {name: getattr(row, name) for name in told}
    assert dict(OrderingKey.objects.values_list("key", "last_sequence")) == {"a": 2, "b": 3}


def test_a_group_and_a_chain_have_their_heads_place() -> None:
    first, second = messages.enqueue_many(
        group(record.s("1"), chain(record.s("2"), record.si("3"))), ordering_keys=["k", "k"]
    )
    assert (first.sequence, second.sequence) == (1, 2)
    assert second.headers["ordering_key"] == "k"


@pytest.mark.parametrize("key", ["x" * 256, "nul\0", 5, b"x", None])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    told = "ordering_key must be a string of 0 to 255 characters without NUL"
    with pytest.raises(ValueError, match=told):
        messages.enqueue(record.s("x"), ordering_key=key)
    with pytest.raises(ValueError, match=told):
        messages.enqueue_many([record.s("x"), record.s("y")], ordering_keys=["fine", key])
    assert not messages.exists()


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c"], "ab", []])
def test_each_signature_has_an_ordering_key(keys: Any) -> None:
    with pytest.raises(ValueError, match="ordering_keys must be a sequence with one for each of 2"):
        messages.enqueue_many([record.s("x"), record.s("y")], ordering_keys=keys)


def test_ordering_keys_may_be_a_generator() -> None:
    signatures = [record.s("x"), record.s("y")]
    rows = messages.enqueue_many(signatures, ordering_keys=(f"k{n}" for n in range(2)))
    assert [row.ordering_key for row in rows] == ["k0", "k1"]


def test_a_key_has_255_characters() -> None:
    assert enqueue("x", "é" * 255).headers["ordering_key"] == "é" * 255


@pytest.mark.parametrize("ordering_keys", [None, [""] * 3])
def test_without_a_key_it_is_one_insert(ordering_keys: Any) -> None:
    with CaptureQueriesContext(connection) as queries:
        rows = messages.enqueue_many([record.s("x")] * 3, ordering_keys=ordering_keys)
    assert len(queries) == 1
    assert "outbox_orderingkey" not in queries[0]["sql"]
    for row in rows:
        row.refresh_from_db()
        assert (row.ordering_key, row.sequence, row.blocked) == ("", None, False)
        assert "ordering_key" not in row.headers
    assert not OrderingKey.objects.exists()


def test_with_keys_it_is_three_statements_for_any_number() -> None:
    with CaptureQueriesContext(connection) as queries:
        messages.enqueue_many(
            [record.s("x")] * 9, ordering_keys=[str(place % 4) for place in range(9)]
        )
    assert len(queries) == 3


def test_the_same_intent_again_takes_no_turn() -> None:
    first = messages.enqueue(record.s("x"), key="intent", ordering_key="k")
    assert messages.enqueue(record.s("x"), key="intent", ordering_key="k") == first
    second = enqueue("y")
    assert turns([first, second]) == ["pending", "blocked"]


def test_an_enqueue_that_is_refused_opens_nothing() -> None:
    messages.enqueue(record.s("x"), key="intent")
    with pytest.raises(DuplicateKey):
        messages.enqueue_many(
            [record.s("1"), record.s("y")], keys=["one", "intent"], ordering_keys=["k", "k"]
        )
    assert messages.filter(ordering_key="k").count() == 0
    assert turns([enqueue("1")]) == ["pending"]


def test_a_savepoint_that_is_rolled_back_leaves_its_place_to_others() -> None:
    first = enqueue("1")
    with transaction.atomic():
        with transaction.atomic():
            enqueue("never")
            transaction.set_rollback(True)
        second = enqueue("2")
    assert (first.sequence, second.sequence) == (1, 2)


def test_a_first_one_that_is_rolled_back_makes_room() -> None:
    with transaction.atomic():
        with transaction.atomic():
            enqueue("never")
            transaction.set_rollback(True)
        assert not enqueue("1").blocked


# The database itself


def test_the_database_refuses_a_second_open_message() -> None:
    rows = line(2)
    with pytest.raises(IntegrityError, match="outbox_one_open_per_key"):
        messages.filter(pk=rows[1].pk).update(blocked=False)


@pytest.mark.parametrize("status", ["published", "failed", "dead"])
def test_whatever_state_the_open_one_is_in(status: str) -> None:
    message(status, record_once.s("1"), ordering_key="k")
    second = enqueue("2")
    assert second.blocked
    with pytest.raises(IntegrityError, match="outbox_one_open_per_key"):
        messages.filter(pk=second.pk).update(blocked=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "published", "published_at": MOMENT},
        {"ordering_key": "", "sequence": None},
        {"sequence": None},
    ],
)
def test_only_a_pending_message_with_a_place_is_blocked(changes: dict[str, Any]) -> None:
    blocked = line(2)[1]
    with pytest.raises(IntegrityError, match=r"outbox_(blocked_ordered|ordered_sequence)"):
        messages.filter(pk=blocked.pk).update(**changes)


def test_an_unordered_message_has_no_place() -> None:
    with pytest.raises(IntegrityError, match="outbox_ordered_sequence"):
        message(sequence=1)


# What makes the next one's turn


def test_a_receipt_does() -> None:
    rows = line()
    assert messages.mark_executed(rows[0].pk) == 1
    assert turns(rows) == ["executed", "pending", "blocked"]


def test_what_waited_is_due_from_its_turn_on() -> None:
    rows = line(2)
    messages.filter(pk=rows[1].pk).update(available_at=MOMENT)
    messages.mark_executed(rows[0].pk)
    assert messages.filter(pk=rows[1].pk, available_at__gt=Now() - HOUR).exists()


def test_what_has_an_eta_keeps_it_and_holds_its_key() -> None:
    eta = datetime(2096, 1, 1, tzinfo=UTC)
    first, second, third = enqueue("1"), enqueue("2", eta=eta), enqueue("3")
    messages.mark_executed(first.pk)
    assert turns([second, third]) == ["pending", "blocked"]
    assert second.available_at == eta
    assert messages.claim(10, 10**6) == []


def test_a_confirm_does_not_for_what_awaits_a_receipt() -> None:
    rows = line()
    messages.settle([rows[0].pk])
    advance("default", ["k"])
    assert turns(rows) == ["published", "blocked", "blocked"]


def test_a_confirm_does_for_what_awaits_none() -> None:
    rows = line(task=record)
    messages.settle([rows[0].pk])
    advance("default", ["k"])
    assert turns(rows) == ["published", "pending", "blocked"]


@pytest.mark.parametrize("status", ["dead", "failed", "published"])
def test_what_waits_for_a_person_holds_its_key_until_it_is_retried(status: str) -> None:
    rows = [message(status, record_once.s("1"), ordering_key="k"), *line(2)]
    advance("default", ["k"])
    assert open_ids() == [rows[0].pk]
    assert messages.filter(pk=rows[0].pk).retry() == 1
    assert turns(rows) == ["pending", "blocked", "blocked"]
    messages.mark_executed(rows[0].pk)
    assert turns(rows) == ["executed", "pending", "blocked"]


@pytest.mark.parametrize("status", ["dead", "failed", "pending"])
def test_or_discarded(status: str) -> None:
    rows = [message(status, record_once.s("1"), ordering_key="k"), *line(2)]
    assert messages.filter(pk=rows[0].pk).discard() == 1
    assert turns(rows) == ["discarded", "pending", "blocked"]


def test_one_that_waits_can_be_discarded() -> None:
    rows = line()
    assert messages.filter(pk=rows[1].pk).discard() == 1
    messages.mark_executed(rows[0].pk)
    assert turns(rows) == ["executed", "discarded", "pending"]


def test_all_of_a_key_can_be_discarded() -> None:
    rows = line()
    assert messages.discard() == 3
    assert turns(rows) == ["discarded"] * 3
    assert turns([enqueue("4")]) == ["pending"]


def test_an_expired_one_is_over() -> None:
    rows = line()
    messages.expire([rows[0].pk])
    advance("default", ["k"])
    assert turns(rows) == ["expired", "pending", "blocked"]


def test_one_that_is_retried_late_waits_for_the_one_under_way() -> None:
    rows = line()
    messages.expire([rows[0].pk])
    advance("default", ["k"])
    messages.settle([rows[1].pk])
    assert messages.expired().retry() == 1
    assert turns(rows) == ["blocked", "published", "blocked"]
    messages.mark_executed(rows[1].pk)
    assert turns(rows) == ["pending", "executed", "blocked"]


def test_many_of_many_keys_are_retried_at_once() -> None:
    rows = [message("expired", ordering_key=key) for key in ("b", "a", "b", "a", "")]
    assert messages.retry() == 5
    assert turns(rows) == ["pending", "pending", "blocked", "blocked", "pending"]


def test_a_refusal_for_now_changes_no_turn_and_one_for_good_neither() -> None:
    rows = line()
    messages.refuse([Refusal(rows[0].pk, "not now")])
    advance("default", ["k"])
    assert turns(rows) == ["pending", "blocked", "blocked"]
    messages.refuse([Refusal(rows[0].pk, "never", permanent=True)])
    advance("default", ["k"])
    assert turns(rows) == ["dead", "blocked", "blocked"]


def test_an_unguarded_task_that_failed_holds_nothing() -> None:
    """It was published, and its key has gone on since."""
    rows = line(task=record)
    messages.settle([rows[0].pk])
    advance("default", ["k"])
    assert messages.mark_failed(rows[0].pk, "KeyError: x") == 1
    assert turns(rows) == ["failed", "pending", "blocked"]


def test_nor_does_one_whose_relay_was_killed_before_it_settled() -> None:
    rows = line(task=record)
    assert messages.mark_failed(rows[0].pk, "KeyError: x") == 1
    assert turns(rows) == ["failed", "pending", "blocked"]


def test_a_guarded_task_that_failed_holds_its_key() -> None:
    rows = line()
    messages.settle([rows[0].pk])
    assert messages.mark_failed(rows[0].pk, "KeyError: x") == 1
    assert turns(rows) == ["failed", "blocked", "blocked"]


def retried_while_another_is_under_way() -> list[OutboxMessage]:
    rows = line(2)
    messages.settle([rows[0].pk])
    messages.expire([rows[0].pk])
    advance("default", ["k"])
    assert messages.expired().retry() == 1
    assert turns(rows) == ["blocked", "pending"]
    return rows


def test_an_earlier_delivery_of_what_waits_may_succeed() -> None:
    rows = retried_while_another_is_under_way()
    assert messages.mark_executed(rows[0].pk) == 1
    assert turns(rows) == ["executed", "pending"]


def test_an_earlier_delivery_of_what_waits_may_fail() -> None:
    rows = retried_while_another_is_under_way()
    assert messages.mark_failed(rows[0].pk, "KeyError: x") == 0
    assert turns(rows) == ["blocked", "pending"]


def test_nothing_happens_to_a_key_that_is_not_there() -> None:
    advance("default", ["nobody's"])
    assert advance_free("default", ["nobody's"]) == set()


# Keys that nobody goes on with


def forget(key: str) -> None:
    """End the open message of a key, as a relay does that is killed before it goes on."""
    messages.open_of(key).update(status="discarded", available_at=None)


def test_idle_keys_are_found_some_at_a_time() -> None:
    for key in "abcde":
        line(2, key)
    for key in "bde":
        forget(key)
    enqueue("alone", "f")
    assert idle_keys("default", "", 2) == (["b"], "b")
    assert idle_keys("default", "b", 2) == (["d"], "d")
    assert idle_keys("default", "d", 2) == (["e"], "")
    assert idle_keys("default", "", 100) == (["b", "d", "e"], "")
    assert advance_free("default", ["b", "d"]) == set()
    assert idle_keys("default", "", 100) == (["e"], "")


# Purge


def test_a_key_without_a_message_is_purged() -> None:
    for key in "abcdefg":
        row = message("executed", ordering_key=key)
        if key in "acdg":
            row.delete()
    assert purge_keys("default", batch_size=2) == 4
    assert set(OrderingKey.objects.values_list("key", flat=True)) == {"b", "e", "f"}
    assert purge_keys("default", batch_size=2) == 0


def test_a_key_that_was_purged_begins_anew() -> None:
    message("executed", ordering_key="k").delete()
    assert purge_keys("default") == 1
    assert turns(line(2)) == ["pending", "blocked"]


def test_a_message_of_a_key_is_purged_like_others() -> None:
    rows = line(2)
    messages.mark_executed(rows[0].pk)
    messages.update(created_at=Now() - 9 * HOUR)
    messages.filter(pk=rows[0].pk).update(executed_at=Now() - 9 * HOUR, published_at=MOMENT)
    assert messages.purge(HOUR) == 1
    assert status_of(rows[1]) == "pending"


# What it costs


BACKLOG = """
INSERT INTO outbox_outboxmessage (
    id, task, status, headers, properties, body, key, exchange, routing_key, queue,
    ordering_key, sequence, blocked, awaits_receipt, attempts, errors, created_at
)
SELECT gen_random_uuid(), 'tests.project.tasks.record_once', 'pending',
    '{{}}', '{{}}', '', '', '', '', '', {key}, n, n > {heads}, true, 0, '[]', now()
FROM generate_series(1, {rows}) AS n
"""
KEYS = """
INSERT INTO outbox_orderingkey SELECT DISTINCT ordering_key, 30000 FROM outbox_outboxmessage
"""


def backlog() -> None:
    """20,000 messages on one key, 20,000 on 1,000 keys, the heads of all of them open."""
    with connection.cursor() as cursor:
        cursor.execute(BACKLOG.format(key="'hot'", rows=20_000, heads=1))
        cursor.execute(BACKLOG.format(key="'key ' || n % 1000", rows=20_000, heads=1000))
        cursor.execute(KEYS)


def touched(sql: str, parameters: list[Any]) -> int:
    """How many pages a statement reads, cached ones included."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", parameters)
        plan = cursor.fetchone()[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.fixture(params=["of an empty table", "of an emptied table", "fresh"])
def full(request: pytest.FixtureRequest) -> None:
    """A backlog, and statistics that may be old."""
    empty_table()
    with connection.cursor() as cursor:
        if request.param == "of an emptied table":
            with transaction.atomic():
                backlog()
                transaction.set_rollback(True)
            cursor.execute("ANALYZE outbox_outboxmessage")
        backlog()
        if request.param == "fresh":
            cursor.execute("ANALYZE outbox_outboxmessage")


@pytest.mark.usefixtures("full")
def test_a_turn_is_found_at_any_backlog() -> None:
    # A table of this size has more than 1,000 pages.
    assert touched(ordering_querysets.OPEN_NEXT, [["hot", "key 7"]]) < 40
    messages.filter(ordering_key__in=["hot", "key 7"], sequence__in=[1, 7]).filter(
        blocked=False
    ).update(status="discarded", available_at=None)
    assert touched(ordering_querysets.OPEN_NEXT, [["hot", "key 7"]]) < 100
    assert [messages.get(pk=open_ids(key)[0]).sequence for key in ("hot", "key 7")] == [2, 1007]


@pytest.mark.usefixtures("full")
def test_idle_keys_are_found_at_any_backlog() -> None:
    parameters: Any = {"after": "", "limit": 50}
    assert touched(ordering_querysets.IDLE_KEYS, parameters) < 50 * 30


@pytest.mark.usefixtures("full")
def test_a_claim_reads_nothing_that_is_blocked() -> None:
    parameters: Any = ["-infinity", 500, timedelta(seconds=30), 10**9]
    with connection.cursor() as cursor:
        cursor.execute("UPDATE outbox_outboxmessage SET available_at = %s WHERE blocked", [MOMENT])
    assert touched(CLAIM, parameters) < 500 * 8
    heads = [claimed.id for claimed in messages.claim(500, 10**9)]
    assert len(heads) == 500
    assert messages.filter(pk__in=heads, blocked=True).count() == 0
    messages.settle(messages.filter(blocked=False).values_list("pk", flat=True))
    # The dead rows of what was just settled are still in the index.
    assert touched(CLAIM, parameters) < 500

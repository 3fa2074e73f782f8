"""Writing messages: in whose transaction, with what, and with how many statements."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from celery import chain, group
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from outbox.exceptions import TransactionRequired, UnserializableArgument, UnsupportedSignature
from outbox.models import OutboxMessage
from tests.project import tasks
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Callable

record: Any = tasks.record
record_once: Any = tasks.record_once
messages = OutboxMessage.objects

pytestmark = [pytest.mark.django_db(databases=["default", "other"]), pytest.mark.database]
in_transactions = pytest.mark.django_db(transaction=True, databases=["default", "other"])


# The transaction


@in_transactions
def test_a_transaction_is_required() -> None:
    for call in (
        lambda: messages.enqueue(record.s("x")),
        lambda: messages.enqueue_many([record.s("x")]),
        lambda: messages.enqueue_many([]),
    ):
        with pytest.raises(TransactionRequired, match=r"transaction.atomic\(using='default'\)"):
            call()
    assert not messages.exists()


@in_transactions
def test_a_transaction_on_another_alias_is_not_enough() -> None:
    with (
        transaction.atomic(),
        pytest.raises(TransactionRequired, match=r"transaction.atomic\(using='other'\)"),
    ):
        messages.enqueue(record.s("x"), using="other")
    assert not messages.using("other").exists()


@in_transactions
def test_a_rollback_leaves_no_message() -> None:
    def fails_after_enqueue() -> None:
        with transaction.atomic():
            Effect.objects.create(label="x")
            messages.enqueue(record.s("x"))
            messages.enqueue_many([record.s("y"), record.s("z")], keys=["1", "2"])
            raise LookupError

    with pytest.raises(LookupError):
        fails_after_enqueue()
    assert not messages.exists()
    assert not Effect.objects.exists()


@in_transactions
def test_a_savepoint_that_is_rolled_back_drops_its_own_only() -> None:
    with transaction.atomic():
        before = messages.enqueue(record.s("before"))
        with transaction.atomic():
            messages.enqueue(record.s("inside"), key="k")
            transaction.set_rollback(True)
        after = messages.enqueue(record.s("after"), key="k")
    assert set(messages.values_list("pk", flat=True)) == {before.pk, after.pk}


@in_transactions
def test_a_commit_keeps_message_and_business_row() -> None:
    with transaction.atomic():
        Effect.objects.create(label="x")
        written = messages.enqueue(record.s("x"))
    assert messages.get() == written
    assert Effect.objects.count() == 1


# What is written


@pytest.mark.parametrize("use_tz", [True, False])
def test_the_returned_message_is_the_row(use_tz: bool, settings: Any) -> None:
    settings.TIME_ZONE, settings.USE_TZ = "America/New_York", use_tz
    returned = messages.enqueue(
        record.s("x", lock=None).set(queue="topical", routing_key="topic.x", expires=60),
        key="order:1",
    )
    read = messages.get()
    for field in OutboxMessage._meta.concrete_fields:
        left, right = getattr(returned, field.name), getattr(read, field.name)
        if field.name == "body":
            left, right = bytes(left), bytes(right)
        assert left == right, field.name
    assert returned.status == OutboxMessage.Status.PENDING
    assert (returned.queue, returned.exchange, returned.routing_key) == (
        "topical",
        "topical",
        "topic.x",
    )
    assert returned._state.db == "default"
    assert not returned._state.adding


def test_a_returned_message_can_be_saved() -> None:
    returned = messages.enqueue(record.s("x"))
    returned.errors = [{"error": "by hand"}]
    returned.save()
    assert messages.get().errors == [{"error": "by hand"}]


def test_a_message_is_due_at_once_by_the_databases_clock() -> None:
    written = messages.enqueue(record.s("x"))
    assert written.available_at is not None
    assert abs(written.available_at - written.created_at) < timedelta(seconds=1)
    assert messages.due().get() == written


@pytest.mark.parametrize("number", [1, 3])
def test_a_countdown_that_is_less_than_a_clock_tells_is_none(number: int) -> None:
    signatures = [record.s("x").set(countdown=1e-9)] * number
    for written in messages.enqueue_many(signatures):
        assert written.available_at is not None
        assert written.available_at <= written.created_at


def test_a_countdown_counts_by_the_databases_clock() -> None:
    written = messages.enqueue(record.s("x").set(countdown=90.5))
    assert written.available_at is not None
    difference = written.available_at - written.created_at - timedelta(seconds=90.5)
    assert abs(difference) < timedelta(seconds=1)
    assert not messages.due().exists()


def test_an_eta_is_when_it_is_available() -> None:
    eta = datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    assert messages.enqueue(record.s("x").set(eta=eta)).available_at == eta


def test_an_eta_that_has_passed_is_due() -> None:
    written = messages.enqueue(record.s("x").set(eta=datetime(2021, 1, 1, tzinfo=UTC)))
    assert messages.due().get() == written


def test_a_receipt_is_awaited_where_the_guard_writes() -> None:
    assert messages.enqueue(record_once.s("x")).awaits_receipt
    assert messages.enqueue(chain(record_once.s("x"), record.si("y"))).awaits_receipt
    assert not messages.enqueue(record.s("x")).awaits_receipt
    assert not messages.enqueue(chain(record.s("x"), record_once.si("y"))).awaits_receipt
    assert not messages.enqueue(record_once.s("x"), using="other").awaits_receipt


def test_a_message_may_be_on_another_alias() -> None:
    for written in (
        messages.enqueue(record.s("x"), using="other"),
        messages.db_manager("other").enqueue(record.s("x")),
    ):
        assert written._state.db == "other"
        assert messages.using("other").filter(pk=written.pk).exists()
    assert not messages.exists()


# How many statements


def test_one_statement_for_each_enqueue() -> None:
    with CaptureQueriesContext(connection) as queries:
        messages.enqueue(record.s("x"))
        messages.enqueue(record.s("x"), key="k")
    assert [query["sql"].split()[0] for query in queries] == ["INSERT", "INSERT"]


@pytest.mark.parametrize("keyed", [False, True])
def test_one_insert_for_many(keyed: bool) -> None:
    signatures = [record.s(str(number)) for number in range(200)]
    keys = [f"key {number}" for number in range(200)] if keyed else None
    with CaptureQueriesContext(connection) as queries:
        written = messages.enqueue_many(signatures, keys=keys)
    assert len(queries) == 1
    assert len(written) == messages.count() == 200
    assert [list(message.arguments(["application/json"])[0]) for message in written] == [
        [str(number)] for number in range(200)
    ]


def test_one_insert_for_a_group() -> None:
    with CaptureQueriesContext(connection) as queries:
        written = messages.enqueue_many(group(record.s(str(number)) for number in range(200)))
    assert len(queries) == 1
    assert len({message.headers["group"] for message in written}) == 1
    assert [message.headers["group_index"] for message in written] == list(range(200))


def test_nothing_for_nothing() -> None:
    with CaptureQueriesContext(connection) as queries:
        assert messages.enqueue_many([]) == []
        assert messages.enqueue_many(group()) == []
        assert messages.enqueue_many([], keys=[]) == []
    assert len(queries) == 0


# What is refused before anything is written


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (lambda: record.s(object()), UnserializableArgument, "argument 1"),
        (lambda: record.s("x").set(headers={"y": float("nan")}), UnserializableArgument, "'y'"),
        (lambda: record.s("x").set(task_id="own"), ValueError, "task_id"),
        (lambda: record.s("x").set(countdown=float("nan")), ValueError, "countdown"),
        (lambda: group(record.s("x"), record.s("y")), UnsupportedSignature, "enqueue_many"),
        (lambda: record, TypeError, "signature"),
    ],
)
def test_what_cannot_be_held_is_refused_and_nothing_written(
    target: Callable[[], Any], error: type[Exception], words: str
) -> None:
    with CaptureQueriesContext(connection) as queries:
        with pytest.raises(error, match=words):
            messages.enqueue(target())
        with pytest.raises((error, UnsupportedSignature), match=words):
            messages.enqueue_many([record.s("fine"), target()])
    assert len(queries) == 0


def test_an_unserializable_argument_is_a_type_error_too() -> None:
    with pytest.raises(TypeError):
        messages.enqueue(record.s(object()))


# From async code


@in_transactions
def test_async_code_enqueues_in_its_transaction() -> None:
    async def view() -> list[OutboxMessage]:
        atomic = transaction.atomic()
        await sync_to_async(atomic.__enter__)()
        one = await messages.aenqueue(record.s("x"), key="k")
        many = await messages.aenqueue_many([record.s("y"), record.s("z")])
        await sync_to_async(atomic.__exit__)(None, None, None)
        return [one, *many]

    written = async_to_sync(view)()
    assert {message.pk for message in written} == set(messages.values_list("pk", flat=True))
    assert len(written) == 3


@in_transactions
def test_async_code_needs_a_transaction_too() -> None:
    with pytest.raises(TransactionRequired):
        async_to_sync(messages.aenqueue)(record.s("x"))
    with pytest.raises(TransactionRequired):
        async_to_sync(messages.aenqueue_many)([record.s("x")])


# Around it


def test_a_broker_that_is_away_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://guest@127.0.0.1:1//")
    began = time.monotonic()
    messages.enqueue(record.s("x").set(queue="nowhere"))
    assert time.monotonic() - began < 2

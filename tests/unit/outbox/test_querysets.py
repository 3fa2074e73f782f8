"""Enqueue, claim, settle: what is written, what is not, and who may take it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from celery import group
from django.db import IntegrityError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from outbox.exceptions import DuplicateKey, TransactionRequired, UnserializableArgument
from outbox.models import OutboxMessage
from outbox.querysets import Refusal
from tests.helpers import wait_for
from tests.project.tasks import record, record_once

if TYPE_CHECKING:
    from pytest_django import DjangoAssertNumQueries
    from pytest_django.fixtures import Settings

pytestmark = [pytest.mark.django_db(databases=["default", "other"]), pytest.mark.database]
live = pytest.mark.django_db(transaction=True, databases=["default", "other"])

BYTES = 10**9


def enqueue(count: int = 1, **options: Any) -> list[OutboxMessage]:
    with transaction.atomic():
        signatures = [record.s(str(i)).set(**options) for i in range(count)]
        return OutboxMessage.objects.enqueue_many(signatures)


def session(work: Callable[[], object]) -> threading.Thread:
    """Return a thread that runs ``work`` on a connection of its own."""

    def run() -> None:
        try:
            work()
        finally:
            connection.close()

    return threading.Thread(target=run)


def run_in_another_session(work: Callable[[], object]) -> None:
    thread = session(work)
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive()


def waiting_for_a_lock() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return int(cursor.fetchone()[0])


# Enqueue.


@live
def test_enqueue_outside_a_transaction_is_refused() -> None:
    with pytest.raises(TransactionRequired, match=r"transaction\.atomic\(using='default'\)"):
        OutboxMessage.objects.enqueue(record.s("x"))
    with (
        transaction.atomic(using="other"),
        pytest.raises(TransactionRequired, match="'default'"),
    ):
        OutboxMessage.objects.enqueue(record.s("x"))
    assert not OutboxMessage.objects.exists()


@live
def test_a_rolled_back_transaction_leaves_no_message() -> None:
    with transaction.atomic():
        OutboxMessage.objects.enqueue(record.s("x"))
        transaction.set_rollback(True)
    assert not OutboxMessage.objects.exists()


@live
def test_a_rolled_back_savepoint_drops_its_own_only() -> None:
    with transaction.atomic():
        kept = OutboxMessage.objects.enqueue(record.s("kept"))
        with transaction.atomic():
            OutboxMessage.objects.enqueue(record.s("dropped"))
            transaction.set_rollback(True)
        also_kept = OutboxMessage.objects.enqueue(record.s("also kept"))
    assert set(OutboxMessage.objects.values_list("id", flat=True)) == {kept.id, also_kept.id}


def test_what_enqueue_returns_is_what_the_row_holds() -> None:
    with transaction.atomic():
        returned = OutboxMessage.objects.enqueue(
            record_once.s("x", lock=7).set(expires=60, headers={"tenant": "a"}), key="k"
        )
    stored = OutboxMessage.objects.get()
    for field in OutboxMessage._meta.concrete_fields:
        ours, theirs = getattr(returned, field.attname), getattr(stored, field.attname)
        assert ours == (bytes(theirs) if field.name == "body" else theirs), field.name
    assert stored.status == OutboxMessage.Status.PENDING
    assert stored.headers["id"] == str(stored.id) == stored.properties["correlation_id"]
    assert stored.arguments(["application/json"]) == (["x"], {"lock": 7})
    assert stored.awaits_receipt


def test_one_enqueue_is_one_statement(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    with django_assert_num_queries(1):
        OutboxMessage.objects.enqueue(record.s("x"))
    with django_assert_num_queries(1):
        OutboxMessage.objects.enqueue(record.s("x"), key="k")


def test_a_group_of_two_hundred_is_one_statement(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    with django_assert_num_queries(1):
        messages = OutboxMessage.objects.enqueue_many(group(record.s(str(i)) for i in range(200)))
    assert len({message.id for message in messages}) == OutboxMessage.objects.count() == 200
    assert {message.headers["group_index"] for message in messages} == set(range(200))
    assert len({message.headers["group"] for message in messages}) == 1


def test_no_signatures_write_nothing(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    with django_assert_num_queries(0):
        assert OutboxMessage.objects.enqueue_many([]) == []


def test_one_bad_signature_writes_none_of_them() -> None:
    with pytest.raises(UnserializableArgument, match="argument 1"):
        OutboxMessage.objects.enqueue_many([record.s("good"), record.s(object())])
    assert not OutboxMessage.objects.exists()


def test_enqueue_from_async_code() -> None:
    message = async_to_sync(OutboxMessage.objects.aenqueue)(record.s("x"), key="k")
    messages = async_to_sync(OutboxMessage.objects.aenqueue_many)([record.s("x")], keys=["k"])
    assert [message] == messages == list(OutboxMessage.objects.all())


def test_a_message_lives_on_the_alias_it_is_given() -> None:
    with CaptureQueriesContext(connections["default"]) as elsewhere, transaction.atomic("other"):
        message = OutboxMessage.objects.enqueue(record_once.s("x"), using="other")
    assert len(elsewhere) == 0
    assert not OutboxMessage.objects.exists()
    assert OutboxMessage.objects.using("other").get() == message
    # Its guard writes to the default alias, so no receipt will come here.
    assert not message.awaits_receipt


def test_ordering_is_refused_until_it_exists() -> None:
    with pytest.raises(NotImplementedError, match="ordering_key"):
        OutboxMessage.objects.enqueue(record.s("x"), ordering_key="account:1")
    assert not OutboxMessage.objects.exists()


# Schedules.


def test_a_countdown_counts_on_the_databases_clock() -> None:
    message = enqueue(countdown=60)[0]
    assert message.available_at is not None
    waits = message.available_at - message.created_at
    assert timedelta(seconds=59.9) < waits <= timedelta(seconds=60)
    assert message.headers["eta"] is None
    assert not OutboxMessage.objects.due().exists()


def test_an_eta_is_kept_to_the_microsecond() -> None:
    eta = datetime(2100, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    assert enqueue(eta=eta)[0].available_at == eta


def test_expires_is_absolute_from_the_enqueue() -> None:
    message = enqueue(expires=60)[0]
    assert message.expires_at is not None
    assert abs(message.expires_at - message.created_at - timedelta(seconds=60)).total_seconds() < 5
    assert datetime.fromisoformat(message.headers["expires"]) == message.expires_at


# Keys.


def test_the_same_key_again_returns_the_first_message() -> None:
    first = OutboxMessage.objects.enqueue(record.s("x"), key="k")
    assert OutboxMessage.objects.enqueue(record.s("x"), key="k") == first
    assert OutboxMessage.objects.count() == 1


def test_a_key_names_an_intent_of_one_task() -> None:
    OutboxMessage.objects.enqueue(record.s("x"), key="k")
    OutboxMessage.objects.enqueue(record_once.s("x"), key="k")
    assert OutboxMessage.objects.count() == 2


def test_the_same_key_with_other_arguments_is_refused() -> None:
    first = OutboxMessage.objects.enqueue(record.s("x"), key="k")
    with pytest.raises(DuplicateKey, match=f"message {first.id}"):
        OutboxMessage.objects.enqueue(record.s("y"), key="k")
    assert OutboxMessage.objects.count() == 1


def test_a_key_twice_in_one_call_is_one_message() -> None:
    signatures = [record.s("x"), record.s("y"), record.s("x")]
    messages = OutboxMessage.objects.enqueue_many(signatures, keys=["a", "b", "a"])
    assert messages[0] == messages[2] != messages[1]
    assert OutboxMessage.objects.count() == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "nul\0", 7, None])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="1 to 255 characters"):
        OutboxMessage.objects.enqueue_many([record.s("x")], keys=[key])


@pytest.mark.parametrize("keys", [[], ["a", "b"], "a"])
def test_there_is_one_key_for_each_signature(keys: Any) -> None:
    with pytest.raises(ValueError, match="one key for each of 1 signatures"):
        OutboxMessage.objects.enqueue_many([record.s("x")], keys=keys)


@live
@pytest.mark.parametrize("commits", [True, False])
def test_a_concurrent_twin_waits_and_gets_what_is_there(commits: bool) -> None:
    """The first commits: the twin gets its message. It rolls back: the twin writes its own."""
    twins: list[OutboxMessage] = []

    def enqueue_twin() -> None:
        with transaction.atomic():
            twins.append(OutboxMessage.objects.enqueue(record.s("x"), key="k"))

    twin = session(enqueue_twin)
    try:
        with transaction.atomic():
            first = OutboxMessage.objects.enqueue(record.s("x"), key="k")
            twin.start()
            wait_for(lambda: waiting_for_a_lock() == 1, message="The twin did not wait")
            assert not twins
            transaction.set_rollback(not commits)
    finally:
        twin.join(timeout=30)
    assert (twins == [first]) is commits
    assert OutboxMessage.objects.get() == twins[0]


# The table.


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "pending", "available_at": None},
        {"status": "pending", "published_at": "now"},
        {"status": "published"},
        {"status": "published", "published_at": "now", "executed_at": "now"},
        {"status": "executed", "published_at": "now", "available_at": None},
        {"status": "executed", "executed_at": "now", "available_at": None},
        {"status": "executed", "executed_at": "now", "published_at": "now"},
        {"status": "failed", "available_at": None},
        {"status": "dead"},
        {"status": "dead", "available_at": None, "executed_at": "now"},
        {"status": "expired"},
        {"status": "discarded"},
        {"status": "lost", "available_at": None},
    ],
    ids=str,
)
def test_a_state_without_its_times_is_refused(columns: dict[str, str | None]) -> None:
    message = enqueue()[0]
    now = datetime.now(UTC)
    values = {name: now if value == "now" else value for name, value in columns.items()}
    with pytest.raises(IntegrityError, match="outbox_status_times"), transaction.atomic():
        OutboxMessage.objects.filter(pk=message.pk).update(**values)


# The claim.


def plan_of_claim() -> str:
    with CaptureQueriesContext(connection) as captured:
        OutboxMessage.objects.all().claim(500, BYTES)
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {captured[0]['sql']}")
        return "\n".join(line for (line,) in cursor)


def require_claim_by_index(plan: str) -> None:
    """The due rows come in the claim's order from the index; no row is read to be left out."""
    assert "Index Scan using outbox_due" in plan, plan
    below_the_lock = plan[plan.index("LockRows") : plan.index("WindowAgg")]
    assert "Seq Scan" not in below_the_lock, plan
    assert "Sort" not in below_the_lock, plan


def test_the_claim_uses_its_index_on_an_empty_table() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE outbox_outboxmessage")
    require_claim_by_index(plan_of_claim())


def test_the_claim_uses_its_index_among_200_000_published_rows() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO outbox_outboxmessage (id, task, status, exchange, routing_key, queue,
                headers, properties, body, key, available_at, awaits_receipt, attempts, errors,
                published_at)
            SELECT gen_random_uuid(), 'task', 'published', '', 'celery', 'celery', '{}', '{}',
                'body', '', NULL, false, 0, '[]', clock_timestamp()
            FROM generate_series(1, 200000)
            """
        )
    enqueue(10)
    require_claim_by_index(plan_of_claim())
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE outbox_outboxmessage")
    require_claim_by_index(plan_of_claim())


def test_the_claim_takes_what_is_due_longest_first() -> None:
    late, early, later = enqueue(3)
    now = datetime.now(UTC)
    for message, minutes in ((late, 2), (early, 3), (later, 1)):
        due = now - timedelta(minutes=minutes)
        OutboxMessage.objects.filter(pk=message.pk).update(available_at=due)
    enqueue(countdown=60)
    claimed = OutboxMessage.objects.all().claim(2, BYTES)
    assert [message.id for message in claimed] == [early.id, late.id]


def test_a_batch_is_bounded_in_bytes() -> None:
    size = len(bytes(enqueue(5)[0].body))
    assert len(OutboxMessage.objects.all().claim(5, size * 2)) == 2
    # One message is taken however large it is.
    assert len(OutboxMessage.objects.all().claim(5, 1)) == 1


@live
def test_claims_of_two_relays_are_exclusive_in_every_state() -> None:
    fresh, refused, retried, deferred = enqueue(4)
    messages = OutboxMessage.objects.all()
    messages.refuse([Refusal(refused.id, "refused")])
    messages.refuse([Refusal(retried.id, "dead", permanent=True)])
    assert OutboxMessage.objects.filter(pk=retried.pk).retry() == 1
    past = datetime.now(UTC) - timedelta(seconds=1)
    messages.filter(pk__in=[refused.pk, deferred.pk]).update(available_at=past)
    second: list[Any] = []

    with transaction.atomic():
        first = messages.claim(3, BYTES)
        run_in_another_session(lambda: second.extend(messages.claim(10, BYTES)))
    taken = [{message.id for message in claim} for claim in (first, second)]
    assert [len(ids) for ids in taken] == [3, 1]
    assert taken[0] | taken[1] == {fresh.id, refused.id, retried.id, deferred.id}


# Settling.


def test_only_what_was_confirmed_is_settled() -> None:
    confirmed, other = enqueue(2)
    assert OutboxMessage.objects.all().settle([confirmed.id, uuid4()]) == 1
    assert OutboxMessage.objects.all().settle([]) == 0
    confirmed.refresh_from_db()
    other.refresh_from_db()
    assert (confirmed.status, other.status) == ("published", "pending")
    assert confirmed.published_at is not None
    assert confirmed.available_at is None


def test_a_refused_message_backs_off_at_random_below_a_bound_that_doubles(
    settings: Settings,
) -> None:
    settings.OUTBOX_BACKOFF_BASE = 100
    settings.OUTBOX_BACKOFF_MAX = 300
    messages = enqueue(200)
    for bound in (100, 200, 300, 300):
        before = datetime.now(UTC)
        assert OutboxMessage.objects.all().refuse([Refusal(m.id, "no") for m in messages]) == 0
        waits = [
            (due - before).total_seconds()
            for due in OutboxMessage.objects.values_list("available_at", flat=True)
            if due is not None
        ]
        assert len(waits) == 200
        assert max(waits) < bound + 5
        # Even over the whole range: the chance that 200 draws miss a fifth of it is 0.8 ** 200.
        assert min(waits) < bound * 0.2
        assert max(waits) > bound * 0.8


def test_errors_are_kept_per_attempt_and_capped(settings: Settings) -> None:
    settings.OUTBOX_MAX_ATTEMPTS = 25
    message = enqueue()[0]
    for attempt in range(1, 25):
        error = f"error {attempt}\0" + "x" * 5000
        assert OutboxMessage.objects.all().refuse([Refusal(message.id, error)]) == 0
    assert OutboxMessage.objects.all().refuse([Refusal(message.id, "the last")]) == 1
    message.refresh_from_db()
    assert (message.status, message.attempts, message.available_at) == ("dead", 25, None)
    assert [error["attempt"] for error in message.errors] == list(range(6, 26))
    assert message.errors[-1]["error"] == "the last"
    assert len(message.errors[0]["error"]) == 1000
    assert datetime.fromisoformat(message.errors[0]["at"]).tzinfo is not None


# Retry and discard.


def test_retry_moves_what_is_over_and_has_not_succeeded() -> None:
    pending, published, executed, failed, dead, discarded = enqueue(6)
    messages = OutboxMessage.objects.all()
    messages.settle([published.id, executed.id, failed.id])
    messages.mark_executed(executed.id)
    messages.mark_failed(failed.id, "ValueError: no")
    messages.refuse([Refusal(dead.id, "no", permanent=True)])
    assert messages.filter(pk=discarded.pk).discard() == 1

    assert messages.retry() == 2
    states = dict(OutboxMessage.objects.values_list("id", "status"))
    assert states == {
        pending.id: "pending",
        published.id: "published",
        executed.id: "executed",
        failed.id: "pending",
        dead.id: "pending",
        discarded.id: "discarded",
    }


def test_an_expired_message_is_retried_without_its_expiry() -> None:
    message = enqueue(expires=60)[0]
    OutboxMessage.objects.all().expire([message.id])
    past = datetime.now(UTC) - timedelta(days=1)
    OutboxMessage.objects.filter(pk=message.pk).update(expires_at=past)
    assert OutboxMessage.objects.all().retry() == 1
    message.refresh_from_db()
    assert (message.status, message.expires_at) == ("pending", None)


@live
@pytest.mark.parametrize("move", ["retry", "discard"])
def test_what_a_relay_holds_is_skipped(move: str) -> None:
    held, free = enqueue(2)
    messages = OutboxMessage.objects.all()
    if move == "retry":
        messages.refuse([Refusal(held.id, "no", permanent=True)])
        messages.refuse([Refusal(free.id, "no", permanent=True)])
    moved: list[int] = []
    with transaction.atomic():
        list(messages.filter(pk=held.pk).select_for_update())
        run_in_another_session(lambda: moved.append(getattr(messages, move)()))
    assert moved == [1]


# Receipts.


def test_a_receipt_comes_even_to_a_row_whose_relay_was_killed() -> None:
    message = enqueue()[0]
    assert OutboxMessage.objects.all().mark_executed(message.id) == 1
    assert OutboxMessage.objects.all().mark_executed(message.id) == 0
    message.refresh_from_db()
    assert message.status == "executed"
    assert message.published_at is not None
    assert not OutboxMessage.objects.due().exists()


def test_a_failure_does_not_replace_a_receipt() -> None:
    message = enqueue()[0]
    OutboxMessage.objects.all().mark_executed(message.id)
    assert OutboxMessage.objects.all().mark_failed(message.id, "ValueError: late") == 0
    message.refresh_from_db()
    assert (message.status, message.errors) == ("executed", [])


def test_a_receipt_replaces_a_failure() -> None:
    message = enqueue()[0]
    OutboxMessage.objects.all().mark_failed(message.id, "ValueError: no")
    assert OutboxMessage.objects.all().mark_executed(message.id) == 1

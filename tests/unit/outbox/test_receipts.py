"""Signals -> the message's row. tests/integration has the same with real workers."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from celery.exceptions import Reject
from celery.signals import task_failure
from django.db import OperationalError, ProgrammingError, connection, transaction
from django.test.utils import CaptureQueriesContext

from idempotency.exceptions import StoreUnavailable
from idempotency.execution import Operation, run_once
from idempotency.leases import run_leased
from idempotency.models import IdempotencyKey
from idempotency.signals import receipt
from idempotency.stores import Terms
from outbox.models import OutboxMessage
from tests.project import tasks
from tests.unit.outbox.rows import message, status_of

pytestmark = pytest.mark.django_db(databases=["default", "other"])

record: Any = tasks.record
record_once: Any = tasks.record_once
messages = OutboxMessage.objects


def execute(message_id: Any, key: str = "k", using: str = "default") -> bool:
    """Run an operation for a message once; return whether it was a duplicate."""
    operation = Operation("tests", "", key, ttl=timedelta(days=1), message_id=message_id)
    return run_once(IdempotencyKey.objects.using(using), operation, lambda: None).replayed


def test_an_execution_and_its_duplicate_write_the_receipt() -> None:
    first, second = message("published"), message("published")
    assert [execute(str(row.pk)) for row in (first, second)] == [False, True]
    assert [status_of(row) for row in (first, second)] == ["executed", "executed"]


def test_the_receipt_travels_with_the_key() -> None:
    row = message("published")
    execute("warm", key="warm")
    with CaptureQueriesContext(connection) as queries:
        execute(str(row.pk))
    assert len([q for q in queries if "SAVEPOINT" not in q["sql"]]) == 2


def test_leased_work_writes_the_receipt() -> None:
    row = message("published")
    records = IdempotencyKey.objects.using("default")
    operation = Operation("tests", "", "k", ttl=timedelta(days=1), message_id=str(row.pk))
    run_leased(records, records, operation, lambda: None, Terms(lease=timedelta(minutes=1)))
    assert status_of(row) == "executed"


def test_the_receipt_is_written_on_the_executions_alias() -> None:
    here, there = message("published"), message("published", using="other")
    for key, row in (("a", here), ("b", there)):
        execute(str(row.pk), key, using="other")
    there.refresh_from_db(using="other")
    assert (status_of(here), there.status) == ("published", "executed")


@pytest.mark.parametrize("message_id", ["", "custom-id", None])
def test_an_execution_that_is_no_messages_is_none_of_our_business(message_id: Any) -> None:
    row = message("published")
    with CaptureQueriesContext(connection) as queries:
        execute(message_id or "")
        answers = receipt.send(sender=IdempotencyKey, message_id=message_id, using="default")
    assert not any("outbox" in query["sql"] for query in queries)
    assert {answer for _, answer in answers} == {None}
    assert status_of(row) == "published"


def test_a_receipt_that_cannot_be_written_rolls_the_execution_back() -> None:
    """Effect, key and receipt are one transaction."""
    row = message("published")

    def without_the_table() -> None:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE outbox_outboxmessage RENAME TO elsewhere")
            execute(str(row.pk))

    with pytest.raises(ProgrammingError, match="does not exist"):
        without_the_table()
    assert status_of(row) == "published"
    assert not IdempotencyKey.objects.exists()


def fail_finally(task: Any, id: object, error: BaseException) -> None:
    task_failure.send(sender=task, task_id=str(id), exception=error)


@pytest.mark.parametrize("task", [record, record_once])
def test_a_final_failure_is_recorded(task: Any) -> None:
    row = message("published", task.s("x"))
    fail_finally(task, row.pk, LookupError("no such order"))
    row.refresh_from_db()
    assert (row.status, row.errors[0]["error"]) == ("failed", "LookupError: no such order")


def test_a_rejection_is_no_failure() -> None:
    row = message("published", record_once.s("x"))
    fail_finally(record_once, row.pk, Reject("x"))
    row.refresh_from_db()
    assert (row.status, row.errors) == ("published", [])


def test_a_final_failure_is_recorded_where_the_message_was_published_from() -> None:
    row = message("published", using="other")
    record.push_request(headers={"published_from": "other"})
    try:
        fail_finally(record, row.pk, LookupError("x"))
    finally:
        record.pop_request()
    row.refresh_from_db(using="other")
    assert row.status == "failed"


def lost(cause: BaseException) -> OperationalError:
    """Django's error, as it wraps the driver's."""
    error = OperationalError(str(cause))
    error.__cause__ = cause
    return error


LOST = [
    psycopg.errors.AdminShutdown("terminating connection due to administrator command"),
    psycopg.errors.CannotConnectNow("the database system is starting up"),
    psycopg.errors.ConnectionFailure("gone"),
    psycopg.OperationalError("the connection is lost"),
]


def test_a_lease_that_could_not_be_had_is_not_a_guarded_tasks_failure() -> None:
    """Where the guard says on_in_progress="raise"; else it comes again by itself."""
    row = message("published", record_once.s("x"))
    fail_finally(record_once, row.pk, StoreUnavailable("x"))
    assert status_of(row) == "published"


@pytest.mark.parametrize("cause", LOST)
def test_a_connection_that_was_lost_is_not_a_guarded_tasks_failure(
    cause: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    row = message("published", record_once.s("x"))
    fail_finally(record_once, row.pk, lost(cause))
    assert status_of(row) == "published"
    assert f"The task of message {row.pk} lost its connection" in caplog.text


@pytest.mark.parametrize("cause", LOST)
def test_nobody_publishes_an_unguarded_message_again(cause: Exception) -> None:
    row = message("published", record.s("x"))
    fail_finally(record, row.pk, lost(cause))
    assert status_of(row) == "failed"


@pytest.mark.parametrize(
    "error",
    [
        lost(psycopg.errors.DeadlockDetected("deadlock detected")),
        lost(psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")),
        OperationalError("raised by the task itself"),
        LookupError("the connection is lost"),
    ],
)
def test_another_error_of_the_database_is_a_failure(error: Exception) -> None:
    row = message("published", record_once.s("x"))
    fail_finally(record_once, row.pk, error)
    assert status_of(row) == "failed"


@pytest.mark.parametrize("id", ["custom-id", "", None, uuid4()])
def test_a_failure_that_is_no_messages_is_none_of_our_business(id: object) -> None:
    row = message("published")
    fail_finally(record, id, LookupError("x"))
    assert status_of(row) == "published"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_that_has_no_text_is_recorded_all_the_same() -> None:
    row = message("published")
    fail_finally(record, row.pk, Unprintable())
    row.refresh_from_db()
    assert row.status == "failed"
    assert row.errors[0]["error"].startswith("Unprintable")


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_does_not_hide_the_tasks_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = message("published")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE outbox_outboxmessage RENAME TO elsewhere")
    try:
        with caplog.at_level(logging.ERROR, "outbox.receipts"):
            fail_finally(record, row.pk, LookupError("x"))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO outbox_outboxmessage")
    assert f"Could not record that the task of message {row.pk} failed" in caplog.text

"""States: what retry and discard move, what a relay's settling moves, and receipts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone

from outbox.models import OutboxMessage
from outbox.relay_querysets import ERROR_LENGTH, KEPT_ERRORS, Refusal
from tests.project import tasks
from tests.sessions import another_session
from tests.unit.outbox.rows import MOMENT, message, status_of

record_once: Any = tasks.record_once
Status = OutboxMessage.Status
messages = OutboxMessage.objects

pytestmark = [pytest.mark.django_db(databases=["default", "other"]), pytest.mark.database]


# Where a message is


@pytest.mark.parametrize("status", Status.values)
def test_each_state_has_its_queryset(status: str) -> None:
    rows = {each: message(each) for each in Status.values}
    if status != "discarded":
        assert list(getattr(messages, status)()) == [rows[status]]


def test_due_is_what_a_relay_would_claim() -> None:
    due = message()
    message(available_at=timezone.now() + timedelta(hours=1))
    message("executed")
    assert list(messages.due()) == [due]


def test_stuck_is_published_without_a_receipt_and_given_up() -> None:
    message("published")
    message("published", awaits_receipt=True, available_at=MOMENT)
    stuck = message("published", awaits_receipt=True)
    assert list(messages.stuck()) == [stuck]


# What may be moved


@pytest.mark.parametrize("move", ["retry", "discard"])
@pytest.mark.parametrize("ordering_keys", [["", ""], ["a", "b"]])
@pytest.mark.parametrize(
    ("chosen", "moved"),
    [
        (messages.distinct(), 2),
        (messages.order_by("task", "created_at").distinct("task"), 1),
        (messages.select_for_update(), 2),
        (messages.select_for_update(of=["self"], no_key=True).distinct(), 2),
    ],
)
def test_a_queryset_may_be_distinct_or_locking(
    chosen: Any, moved: int, ordering_keys: list[str], move: str
) -> None:
    rows = [message("dead", ordering_key=key) for key in ordering_keys]
    message("executed")
    assert getattr(chosen.filter(status="dead"), move)() == moved
    for row in rows[:moved]:
        assert status_of(row) == {"retry": "pending", "discard": "discarded"}[move]


# Trying again


@pytest.mark.parametrize("status", ["dead", "failed", "expired"])
def test_retry_makes_it_pending_under_its_id(status: str) -> None:
    ended = message(status, attempts=10, errors=[{"error": "kept"}], redeliveries=3)
    assert messages.retry() == 1
    ended.refresh_from_db()
    assert (ended.status, ended.attempts, ended.redeliveries) == ("pending", 0, 0)
    assert ended.published_at is None
    assert ended.errors == [{"error": "kept"}]
    assert list(messages.due()) == [ended]


def test_retry_takes_stuck_messages() -> None:
    stuck = message("published", awaits_receipt=True)
    assert messages.retry() == 1
    assert status_of(stuck) == "pending"


@pytest.mark.parametrize("status", ["pending", "published", "executed", "discarded"])
def test_retry_leaves_the_rest(status: str) -> None:
    left = message(status)
    assert messages.retry() == 0
    assert status_of(left) == status


def test_retry_moves_what_its_queryset_holds() -> None:
    moved, left = message("dead"), message("dead")
    assert messages.filter(pk=moved.pk).retry() == 1
    assert (status_of(moved), status_of(left)) == ("pending", "dead")


def test_retry_drops_an_expiry_that_has_passed_and_keeps_one_that_has_not() -> None:
    future = timezone.now() + timedelta(hours=1)
    past = message("expired", expires_at=MOMENT)
    later = message("dead", expires_at=future)
    assert messages.retry() == 2
    past.refresh_from_db()
    later.refresh_from_db()
    assert (past.expires_at, later.expires_at) == (None, future)


def test_retry_and_discard_on_another_alias() -> None:
    here, there = message("dead"), message("dead", using="other")
    assert messages.using("other").retry() == 1
    there.refresh_from_db(using="other")
    assert (status_of(here), there.status) == ("dead", "pending")
    assert messages.using("other").discard() == 1
    there.refresh_from_db(using="other")
    assert there.status == "discarded"


# Giving up


@pytest.mark.parametrize("status", ["pending", "dead", "failed"])
def test_discard_ends_it(status: str) -> None:
    ended = message(status)
    assert messages.discard() == 1
    ended.refresh_from_db()
    assert (ended.status, ended.available_at) == ("discarded", None)


def test_discard_ends_what_is_stuck_and_lets_its_key_go_on() -> None:
    stuck, following = (
        message(signature=record_once.s("x"), ordering_key="account:7") for _ in range(2)
    )
    rows = messages.filter(pk=stuck.pk)
    rows.update(status="published", published_at=MOMENT)
    assert messages.filter(pk=stuck.pk).discard() == 0, "it may still be redelivered"
    rows.update(available_at=None)
    assert messages.filter(pk=stuck.pk).discard() == 1
    assert (status_of(stuck), status_of(following)) == ("discarded", "pending")
    assert not following.blocked


@pytest.mark.parametrize("status", ["published", "executed", "expired", "discarded"])
def test_discard_leaves_the_rest(status: str) -> None:
    left = message(status)
    assert messages.discard() == 0
    assert status_of(left) == status


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("move", ["retry", "discard"])
def test_what_a_relay_holds_is_skipped(move: str) -> None:
    status = "dead" if move == "retry" else "pending"
    held, free = message(status), message(status)
    with another_session() as other:
        with other.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("SELECT FROM outbox_outboxmessage WHERE id = %s FOR UPDATE", [held.pk])
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '5s'")  # to fail, and not to hang
            assert getattr(messages.all(), move)() == 1
    assert status_of(held) == status
    assert status_of(free) != status
    assert getattr(messages.all(), move)() == 1


# The relay's settling


def test_settling_publishes() -> None:
    confirmed, other = message(), message()
    assert messages.settle([confirmed.pk]) == 1
    confirmed.refresh_from_db()
    assert (confirmed.status, confirmed.available_at) == ("published", None)
    assert confirmed.published_at is not None
    assert status_of(other) == "pending"


def test_settling_looks_again_for_a_receipt() -> None:
    guarded = message(signature=record_once.s("x"))
    with override_settings(OUTBOX_REDELIVER_AFTER=60, OUTBOX_MAX_REDELIVERIES=2):
        waits = []
        for _ in range(3):
            messages.settle([guarded.pk])
            guarded.refresh_from_db()
            assert guarded.published_at is not None
            due = guarded.available_at
            waits.append(due and round((due - guarded.published_at).total_seconds()))
    assert waits == [60, 120, None]
    assert guarded.redeliveries == 2
    assert list(messages.stuck()) == [guarded]


@pytest.mark.parametrize("status", ["executed", "failed", "expired", "dead", "discarded"])
def test_settling_moves_only_what_is_under_way(status: str) -> None:
    ended = message(status)
    assert messages.settle([ended.pk]) == 0
    assert messages.expire([ended.pk]) == 0
    assert messages.refuse([Refusal(ended.pk, "no")]) == 0
    assert status_of(ended) == status


def test_expiring() -> None:
    expired = message(expires_at=MOMENT)
    assert messages.expire([expired.pk]) == 1
    expired.refresh_from_db()
    assert (expired.status, expired.available_at, expired.published_at) == ("expired", None, None)


def test_a_refusal_is_counted_with_its_error_and_a_back_off() -> None:
    refused = message()
    with override_settings(OUTBOX_BACKOFF_BASE=100):
        assert messages.refuse([Refusal(refused.pk, "no such exchange")]) == 0
    refused.refresh_from_db()
    assert (refused.status, refused.attempts) == ("pending", 1)
    (error,) = refused.errors
    assert (error["error"], error["attempt"]) == ("no such exchange", 1)
    assert set(error) == {"at", "attempt", "error"}
    assert refused.available_at is not None
    wait = refused.available_at - timezone.now()
    assert timedelta(seconds=-5) < wait <= timedelta(seconds=100)


def test_the_back_off_doubles_up_to_its_cap_and_is_drawn_from_zero() -> None:
    def waits(attempts: int) -> list[float]:
        with transaction.atomic():
            rows = messages.enqueue_many([tasks.record.s("x")] * 30)
        messages.update(attempts=attempts)
        messages.refuse([Refusal(row.pk, "no") for row in rows])
        found = messages.filter(pk__in=[row.pk for row in rows])
        return sorted(
            (row.available_at - timezone.now()).total_seconds() for row in found if row.available_at
        )

    with override_settings(
        OUTBOX_BACKOFF_BASE=1000, OUTBOX_BACKOFF_MAX=8000, OUTBOX_MAX_ATTEMPTS=100
    ):
        for attempts, bound in ((0, 1000), (2, 4000), (3, 8000), (4, 8000), (90, 8000)):
            drawn = waits(attempts)
            assert drawn[-1] <= bound
            assert drawn[-1] > bound / 2  # one of thirty, but for one time in 2**30
            assert drawn[0] < bound / 4


def test_a_message_dies_after_its_attempts() -> None:
    dying = message()
    with override_settings(OUTBOX_MAX_ATTEMPTS=3):
        assert [messages.refuse([Refusal(dying.pk, "no")]) for _ in range(3)] == [0, 0, 1]
    dying.refresh_from_db()
    assert (dying.status, dying.attempts, dying.available_at) == ("dead", 3, None)
    assert [error["attempt"] for error in dying.errors] == [1, 2, 3]


def test_a_permanent_refusal_kills_at_once() -> None:
    dying, other = message(), message()
    refusals = [Refusal(dying.pk, "never", permanent=True), Refusal(other.pk, "not now")]
    assert messages.refuse(refusals) == 1
    assert (status_of(dying), status_of(other)) == ("dead", "pending")


def test_a_redelivery_that_is_refused_too_often_is_stuck_and_not_dead() -> None:
    published = message("published", awaits_receipt=True, available_at=MOMENT)
    with override_settings(OUTBOX_MAX_ATTEMPTS=1):
        messages.refuse([Refusal(published.pk, "no")])
    assert list(messages.stuck()) == [published]


def test_errors_are_capped_in_number_and_length() -> None:
    refused = message()
    with override_settings(OUTBOX_MAX_ATTEMPTS=1000):
        for number in range(KEPT_ERRORS + 2):
            messages.refuse([Refusal(refused.pk, f"{number} " + "x" * 5000)])
    refused.refresh_from_db()
    assert [error["attempt"] for error in refused.errors] == list(range(3, KEPT_ERRORS + 3))
    assert all(len(error["error"]) == ERROR_LENGTH for error in refused.errors)


@pytest.mark.parametrize("text", ["nul\0", "surrogate\udcff", "quote'\"\\", ""])
def test_an_error_may_hold_anything(text: str) -> None:
    row = message()
    messages.refuse([Refusal(row.pk, f"before {text} after")])
    messages.mark_failed(row.pk, f"before {text} after")
    row.refresh_from_db()
    assert len(row.errors) == 2
    for error in row.errors:
        assert error["error"].startswith("before ")
        assert error["error"].endswith(" after")


# Receipts


@pytest.mark.parametrize("status", sorted(set(Status.values) - {"executed"}))
def test_an_execution_is_recorded_whatever_was_said_before(status: str) -> None:
    row = message(status)
    assert messages.mark_executed(row.pk) == 1
    row.refresh_from_db()
    assert (row.status, row.available_at) == ("executed", None)
    assert row.executed_at is not None
    assert row.published_at is not None


def test_a_second_receipt_changes_nothing() -> None:
    row = message("executed")
    assert messages.mark_executed(row.pk) == 0
    row.refresh_from_db()
    assert row.executed_at == MOMENT


@pytest.mark.parametrize("status", ["pending", "published"])
def test_a_final_failure_is_recorded_with_its_error(status: str) -> None:
    row = message(status, attempts=2)
    assert messages.mark_failed(row.pk, "KeyError: x") == 1
    row.refresh_from_db()
    assert (row.status, row.available_at) == ("failed", None)
    assert row.published_at is not None
    (error,) = row.errors
    assert error["error"] == "KeyError: x"


@pytest.mark.parametrize("status", ["executed", "expired", "dead", "discarded", "failed"])
def test_a_failure_does_not_overwrite_an_end(status: str) -> None:
    row = message(status)
    assert messages.mark_failed(row.pk, "KeyError: x") == 0
    assert status_of(row) == status


def test_an_execution_after_a_failure_counts() -> None:
    row = message("failed", errors=[{"error": "kept"}])
    messages.mark_executed(row.pk)
    row.refresh_from_db()
    assert (row.status, row.errors) == ("executed", [{"error": "kept"}])


# Names


def test_task_names_are_read_from_the_index() -> None:
    with transaction.atomic():
        messages.enqueue_many([tasks.record.s("x"), tasks.fail.s("x"), tasks.record.s("y")])
    assert messages.task_names() == ["tests.project.tasks.fail", "tests.project.tasks.record"]
    assert messages.task_names(limit=1) == ["tests.project.tasks.fail"]

"""Purge: what is over, after its time, in batches; and never what somebody still waits for."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from outbox.models import OutboxMessage
from outbox.querysets import FINISHED, PURGEABLE
from tests.project.tasks import record, record_once
from tests.unit.outbox.rows import message

pytestmark = [pytest.mark.django_db(databases=["default", "other"]), pytest.mark.database]

messages = OutboxMessage.objects
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
OLD: Any = Now() - 2 * DAY
STATES = list(OutboxMessage.Status.values)


def old(status: str, signature: Any = None, **changes: Any) -> OutboxMessage:
    """A message whose times are all two days ago."""
    row = message(
        status, signature, key=changes.pop("key", None), using=changes.pop("using", "default")
    )
    times = {
        name: OLD
        for name in ("created_at", "published_at", "executed_at")
        if getattr(row, name) is not None
    }
    messages.using(row._state.db).filter(pk=row.pk).update(**{**times, **changes})
    row.refresh_from_db(using=row._state.db)
    return row


def left() -> list[str]:
    return sorted(messages.values_list("status", flat=True))


def test_what_is_over_goes_and_nothing_else() -> None:
    for status in STATES:
        old(status)
        message(status, created_at=Now() - HOUR)
    assert messages.purge(DAY) == 3
    kept = [status for status in STATES if status not in FINISHED]
    assert left() == sorted([*STATES, *kept])
    assert messages.purge(DAY) == 0


@pytest.mark.parametrize("status", sorted(set(PURGEABLE) - set(FINISHED)))
def test_what_waits_for_a_person_goes_when_it_is_named(status: str) -> None:
    for other in STATES:
        old(other)
    assert messages.purge(DAY, states=[status]) == 1
    assert left() == sorted(set(STATES) - {status})


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_without_a_row_would_never_end(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {batch_size}"):
        next(messages.purge_in_batches(DAY, batch_size))


@pytest.mark.parametrize("age", ["1 day", None, True, -DAY])
def test_an_age_that_is_none_is_refused(age: Any) -> None:
    """By name: what PostgreSQL says of it would end the caller's transaction, too."""
    with pytest.raises((TypeError, ValueError), match="older_than="):
        messages.purge(age)


def test_an_age_may_be_seconds() -> None:
    old("executed")
    seconds: Any = DAY.total_seconds()
    assert messages.purge(seconds) == 1


@pytest.mark.parametrize("states", [["pending"], ["executed", "pending"], ["stuck"], "dead"])
def test_a_pending_message_is_never_purged(states: Any) -> None:
    old("pending")
    with pytest.raises(ValueError, match="A pending message must be discarded first"):
        messages.purge(DAY, states=states)
    assert left() == ["pending"]


def test_a_message_whose_receipt_is_outstanding_stays_however_old() -> None:
    guarded = record_once.s("x")
    waiting = old("published", guarded, available_at=Now() + HOUR)
    stuck = old("published", guarded)
    old("executed", guarded)
    assert messages.purge(DAY, states=PURGEABLE) == 1
    assert set(messages.all()) == {waiting, stuck}


def test_a_key_is_kept_until_its_window_has_ended(settings: Any) -> None:
    settings.IDEMPOTENCY_TTL = 3 * DAY
    keyed = old("executed", key="k")
    old("executed")
    assert messages.purge(DAY) == 1
    with transaction.atomic():
        assert messages.enqueue(record.s("x"), key="k") == keyed
    assert messages.filter(pk=keyed.pk).exists()
    settings.IDEMPOTENCY_TTL = DAY
    assert messages.purge(DAY) == 1
    assert not messages.filter(pk=keyed.pk).exists()


@pytest.mark.parametrize("name", ["published_at", "executed_at"])
def test_the_age_counts_from_the_last_that_happened(name: str) -> None:
    """A message may have been deferred for a month, or have waited in the broker for a week."""
    old("executed", **{name: Now() - HOUR})
    assert messages.purge(DAY) == 0
    assert messages.purge(HOUR / 2) == 1


def test_it_keeps_to_its_queryset_and_alias() -> None:
    chosen, _ = old("executed"), old("executed")
    there = old("executed", using="other")
    assert messages.filter(pk=chosen.pk).purge(DAY) == 1
    assert messages.using("other").filter(pk=there.pk).exists()
    assert messages.using("other").purge(DAY) == 1
    assert messages.count() == 1


def test_a_batch_is_bounded_and_takes_the_oldest_of_each_state() -> None:
    rows = [old("executed", created_at=OLD - n * HOUR) for n in range(3)]
    rows += [old("discarded", created_at=OLD - n * HOUR) for n in range(3)]
    assert messages.purge(DAY, batch_size=4) == 4
    assert set(messages.all()) == {rows[3], rows[4]}
    assert messages.purge(DAY, batch_size=4) == 2


@pytest.mark.django_db(transaction=True)
def test_what_somebody_holds_is_skipped() -> None:
    held = old("executed")
    old("executed")
    purged: list[int] = []

    def purge() -> None:
        try:
            purged.append(messages.purge(DAY))
        finally:
            connection.close()

    with transaction.atomic():
        messages.select_for_update().get(pk=held.pk)
        thread = threading.Thread(target=purge)
        thread.start()
        thread.join(10)
        assert purged == [1]
    assert list(messages.all()) == [held]


# Of a table without pages, and of one that other tests may have left full of dead rows: there the
# planner sees nothing to choose an index by.
@pytest.mark.parametrize("emptied", ["TRUNCATE outbox_outboxmessage", ""])
def test_an_index_serves_each_state_whatever_the_statistics(emptied: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"{emptied}; ANALYZE outbox_outboxmessage")
        cursor.execute(EXECUTED_ROWS, [50_000])
    with CaptureQueriesContext(connection) as queries:
        assert messages.purge(DAY, batch_size=10, states=("discarded", "executed")) == 10
    discarded, executed = (query["sql"] for query in queries if "SKIP LOCKED" in query["sql"])
    for select in (discarded, executed):
        assert_read_in_order(select)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE outbox_outboxmessage")
    assert "Index Scan using outbox_status_created" in plan(discarded)
    # Nearly every row is executed: the index of all of them does as well.
    assert_read_in_order(executed)


def assert_read_in_order(select: str) -> None:
    assert "Index Scan using outbox_" in plan(select)
    assert "Sort" not in plan(select)


def plan(select: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {select}")
        return "\n".join(line for (line,) in cursor)


EXECUTED_ROWS = """
INSERT INTO outbox_outboxmessage (
    id, task, status, exchange, routing_key, queue, headers, properties, body, key,
    available_at, awaits_receipt, attempts, errors, created_at, published_at, executed_at
)
SELECT gen_random_uuid(), 'tests.project.tasks.record', 'executed', '', 'celery', 'celery',
    '{}', '{}', '', '', NULL, true, 0, '[]', moment, moment, moment
FROM generate_series(1, %s) AS n, LATERAL (
    SELECT now() - interval '9 days' + n * interval '1 second' AS moment
) AS moments
"""

"""The claim: which rows, in which order, bounded how, and who else may have them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from outbox import insert_querysets
from outbox.models import OutboxMessage
from outbox.relay_querysets import Refusal
from tests.project import tasks
from tests.sessions import another_session
from tests.unit.outbox.rows import MOMENT, empty_table, message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

record: Any = tasks.record
messages = OutboxMessage.objects
SECOND = timedelta(seconds=1)

pytestmark = [pytest.mark.django_db(databases=["default", "other"]), pytest.mark.database]

PUBLISHED_ROWS = """
INSERT INTO outbox_outboxmessage (
    id, task, status, exchange, routing_key, queue, headers, properties, body, key,
    available_at, awaits_receipt, attempts, errors, created_at, published_at
)
SELECT gen_random_uuid(), 'tests.project.tasks.record', 'published', '', 'celery', 'celery',
    '{}', '{}', '', '', NULL, false, 0, '[]', now() - n * interval '1 second', now()
FROM generate_series(1, %s) AS n
"""

MOVE_OLD_ROWS = """
UPDATE outbox_outboxmessage SET status = %s, available_at = %s, published_at = %s
WHERE created_at < now()
"""


def claim(rows: int = 500, body_bytes: int = 10**6) -> list[Any]:
    return [claimed.id for claimed in messages.claim(rows, body_bytes)]


# Which, and in which order


def test_a_claim_takes_what_is_due_and_nothing_else() -> None:
    due = message()
    message(available_at=timezone.now() + timedelta(hours=1))
    for status in ("published", "executed", "failed", "expired", "dead", "discarded"):
        message(status)
    assert claim() == [due.pk]


def test_a_claim_takes_what_has_been_due_longest_first() -> None:
    moments = [3, 1, 2, 2]
    rows = [message(available_at=MOMENT + timedelta(hours=hours)) for hours in moments]
    ties = sorted([rows[2].pk, rows[3].pk])
    assert claim() == [rows[1].pk, *ties, rows[0].pk]
    assert claim(rows=2) == [rows[1].pk, ties[0]]


def test_a_claim_may_start_later() -> None:
    rows = [message(available_at=MOMENT + number * SECOND) for number in range(3)]
    claimed = messages.claim(500, 10**6, MOMENT + SECOND)
    assert [row.id for row in claimed] == [row.pk for row in rows[1:]]
    assert [row.available_at for row in claimed] == [row.available_at for row in rows[1:]]


def test_a_look_tells_whether_a_claim_would_find_something() -> None:
    message(available_at=timezone.now() + timedelta(hours=1))
    now, due = messages.look()
    assert not due
    assert abs(now - timezone.now()) < 5 * SECOND
    message(available_at=MOMENT)
    assert messages.look()[1]
    assert messages.look(MOMENT)[1]
    assert not messages.look(MOMENT + SECOND)[1]
    assert messages.look(None, MOMENT + SECOND)[1]
    assert not messages.look(None, MOMENT)[1]


def test_a_moment_that_python_does_not_know_stops_nobody() -> None:
    rows = [message(), message()]
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE outbox_outboxmessage SET available_at = '-infinity' WHERE id = %s", [rows[1].pk]
        )
    assert claim() == [rows[1].pk, rows[0].pk]


@pytest.mark.parametrize(
    ("moment", "expired"),
    [("-infinity", True), ("0044-03-15 BC", True), ("infinity", False), ("20000-01-01", False)],
)
def test_an_expiry_that_python_does_not_know_stops_nobody(moment: str, expired: bool) -> None:
    rows = [message(), message()]
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE outbox_outboxmessage SET expires_at = %s WHERE id = %s", [moment, rows[0].pk]
        )
    with transaction.atomic():
        claimed = messages.claim(500, 10**9)
    assert [(row.id, row.expired) for row in claimed] == [
        (rows[0].pk, expired),
        (rows[1].pk, False),
    ]


def test_a_claim_is_bounded_in_bytes_but_never_empty() -> None:
    rows = [
        message(signature=record.s("x" * size), available_at=MOMENT + timedelta(seconds=place))
        for place, size in enumerate([5000, 3000, 3000, 10])
    ]
    ids = [row.pk for row in rows]
    assert claim(body_bytes=1) == ids[:1]
    assert claim(body_bytes=7000) == ids[:2]
    assert claim(body_bytes=10_000) == ids[:3]
    assert claim(body_bytes=10**6) == ids


def test_empty_bodies_do_not_unbound_a_claim() -> None:
    rows = [message(body=b"", available_at=MOMENT) for _ in range(3)]
    rows.append(message(body=b"x" * 10, available_at=MOMENT + timedelta(seconds=1)))
    rows.append(message(body=b"x" * 10, available_at=MOMENT + timedelta(seconds=2)))
    assert len(claim(body_bytes=5)) == 4


def test_a_claim_tells_what_the_database_knows() -> None:
    written = message(
        signature=record.s("x").set(queue="topical", routing_key="topic.x", expires=60)
    )
    (claimed,) = messages.claim(500, 10**6)
    assert (claimed.id, claimed.task) == (written.pk, written.task)
    assert (claimed.exchange, claimed.routing_key, claimed.queue) == (
        "topical",
        "topic.x",
        "topical",
    )
    assert bytes(claimed.body) == bytes(written.body)
    assert json.loads(claimed.headers)["id"] == str(written.pk)
    assert claimed.expires_in is not None
    assert 50 < claimed.expires_in <= 60
    assert not claimed.expired
    assert not claimed.redelivery


def test_an_expired_message_is_claimed_as_that() -> None:
    message(expires_at=MOMENT)
    (claimed,) = messages.claim(500, 10**6)
    assert claimed.expired


# Redeliveries


def awaiting(**changes: Any) -> OutboxMessage:
    return message("published", tasks.record_once.s("x"), available_at=MOMENT, **changes)


def test_a_message_without_its_receipt_is_claimed_as_a_redelivery() -> None:
    awaiting()
    (claimed,) = messages.claim(500, 10**6)
    assert claimed.redelivery
    assert not claimed.overtaken


def test_a_redelivery_is_overtaken_when_a_later_one_of_its_queue_was_executed() -> None:
    awaiting()
    later = message("executed", published_at=MOMENT + timedelta(hours=1))
    (claimed,) = messages.claim(500, 10**6)
    assert claimed.overtaken
    messages.filter(pk=later.pk).update(queue="another")
    (claimed,) = messages.claim(500, 10**6)
    assert not claimed.overtaken


# Exclusive, in every state


@pytest.fixture
def other_connection(transactional_db: None) -> Iterator[Any]:
    with another_session() as other:
        yield other


def claim_on(other: Any) -> list[Any]:
    """What a relay on another connection would get now; it holds it until it is rolled back."""
    with other.cursor() as cursor:
        cursor.execute("SET lock_timeout = '5s'")  # to fail, and not to hang
        cursor.execute("BEGIN")
        cursor.execute(claim_sql())
        return [row[0] for row in cursor]


def claim_sql(start: datetime | None = None) -> str:
    """The statement of a claim, as it goes to the server."""
    with CaptureQueriesContext(connection) as queries:
        messages.claim(0, 10**6, start)
    (query,) = queries
    return str(query["sql"]).replace("LIMIT 0", "LIMIT 500", 1)


@pytest.mark.django_db(transaction=True)
def test_a_claim_is_exclusive_in_every_state(other_connection: Any) -> None:
    fresh = message()
    refused = message()
    messages.filter(pk=refused.pk).refuse([Refusal(refused.pk, "no")])
    messages.filter(pk=refused.pk).update(available_at=MOMENT)
    retried = message("dead")
    messages.filter(pk=retried.pk).retry()
    deferred = message(signature=record.s("x").set(countdown=3600))
    messages.filter(pk=deferred.pk).update(available_at=MOMENT)
    expired = message(expires_at=MOMENT)
    redelivered = awaiting()
    rows = {row.pk for row in (fresh, refused, retried, deferred, expired, redelivered)}
    with transaction.atomic():
        assert set(claim()) == rows
        assert claim_on(other_connection) == []
        with other_connection.cursor() as cursor:
            cursor.execute("ROLLBACK")
    # The claim ended with its transaction.
    assert set(claim_on(other_connection)) == rows


@pytest.mark.django_db(transaction=True)
def test_two_claims_divide_the_rows(other_connection: Any) -> None:
    rows = {message().pk for _ in range(6)}
    with transaction.atomic():
        mine = claim(rows=3)
        others = claim_on(other_connection)
    assert len(mine) == len(others) == 3
    assert {*mine, *others} == rows


# What it costs


def plan(start: datetime | None = None) -> str:
    messages.limit_transaction(timedelta(minutes=1))
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (FORMAT JSON) " + claim_sql(start))
        (found,) = cursor.fetchone()
    return json.dumps(found)


def assert_served_by_the_index(found: str) -> None:
    """The index gives the rows in the claim's order: nothing is scanned whole, or sorted first."""
    (nodes,) = (json.loads(found)[0]["Plan"],)
    under_lock = next(node for node in walk(nodes) if node["Node Type"] == "LockRows")
    (scan,) = under_lock["Plans"]
    assert scan["Node Type"] == "Index Scan", found
    assert scan["Index Name"] == "outbox_due"
    assert "available_at" in scan["Index Cond"]


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)


@pytest.fixture(params=["everything", "since a second", "a backlog"])
def start(request: pytest.FixtureRequest) -> datetime | None:
    """From when on to claim."""
    return {"everything": None, "since a second": timezone.now() - SECOND, "a backlog": MOMENT}[
        request.param
    ]


def test_the_index_serves_the_claim_on_an_empty_table(start: datetime | None) -> None:
    with connection.cursor() as cursor:
        # Whatever reads a table without a page costs nothing: ask what could do it unsorted.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute("SET LOCAL enable_sort = off")
    assert_served_by_the_index(plan(start))


def test_the_index_serves_the_claim_among_200_000_published(
    start: datetime | None,
) -> None:
    empty_table()
    with connection.cursor() as cursor:
        cursor.execute(PUBLISHED_ROWS, [200_000])
        assert_served_by_the_index(plan(start))  # with the statistics of an empty table
        cursor.execute("ANALYZE outbox_outboxmessage")
    due = message()
    assert_served_by_the_index(plan(start))
    assert claim() == [due.pk]


def test_the_index_serves_the_claim_with_the_statistics_of_an_empty_table(
    start: datetime | None,
) -> None:
    empty_table()
    with connection.cursor() as cursor:
        cursor.execute(PUBLISHED_ROWS, [200_000])
    due = [message().pk for _ in range(20)]
    assert_served_by_the_index(plan(start))
    assert claim() == due


def test_the_index_serves_the_claim_with_the_statistics_of_a_backlog(
    start: datetime | None,
) -> None:
    empty_table()
    with connection.cursor() as cursor:
        cursor.execute(PUBLISHED_ROWS, [20_000])
        cursor.execute(MOVE_OLD_ROWS, ["pending", MOMENT, None])
        cursor.execute("ANALYZE outbox_outboxmessage")
        cursor.execute(MOVE_OLD_ROWS, ["published", None, MOMENT])
    due = [message().pk for _ in range(20)]
    assert_served_by_the_index(plan(start))
    assert claim() == due


def look_sql(start: datetime | None, end: datetime | None = None) -> str:
    with CaptureQueriesContext(connection) as queries:
        messages.look(start, end)
    return str(queries[0]["sql"])


def look_plan(start: datetime | None) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {look_sql(start)}")
        return "\n".join(line for (line,) in cursor)


def test_the_index_serves_a_look_whatever_the_statistics(start: datetime | None) -> None:
    empty_table()
    with connection.cursor() as cursor:
        cursor.execute(PUBLISHED_ROWS, [20_000])
        assert "using outbox_due" in look_plan(start)
        cursor.execute(MOVE_OLD_ROWS, ["pending", MOMENT, None])
        cursor.execute("ANALYZE outbox_outboxmessage")
        cursor.execute(MOVE_OLD_ROWS, ["published", None, MOMENT])
    assert "using outbox_due" in look_plan(start)
    assert "Sort" not in look_plan(start)


# Bounded in time


def test_the_server_ends_a_transaction_that_holds_its_claim_too_long() -> None:
    with transaction.atomic():
        now = messages.limit_transaction(timedelta(seconds=7))
        assert abs(now - timezone.now()) < timedelta(seconds=5)
        with connection.cursor() as cursor:
            cursor.execute("SHOW idle_in_transaction_session_timeout")
            assert cursor.fetchone() == ("7s",)
            if connection.pg_version >= 170000:  # type: ignore[attr-defined]
                cursor.execute("SHOW transaction_timeout")
                assert cursor.fetchone() == ("7s",)


@pytest.mark.django_db(transaction=True)
def test_the_limit_ends_with_the_transaction() -> None:
    with transaction.atomic():
        messages.limit_transaction(timedelta(seconds=7))
    with connection.cursor() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        assert cursor.fetchone() == ("0",)


# Where the server binds the parameters


@pytest.fixture
def server_side_binding(transactional_db: None) -> Iterator[None]:
    other = connections["other"]
    other.close()
    other.settings_dict["OPTIONS"]["server_side_binding"] = True
    try:
        yield
    finally:
        other.close()
        del other.settings_dict["OPTIONS"]["server_side_binding"]


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_every_statement_works_where_the_server_binds(server_side_binding: None) -> None:
    rows = messages.using("other")
    row = message(signature=record.s("x").set(countdown=0.001), key="k", using="other")
    with transaction.atomic(using="other"):
        assert messages.enqueue(record.s("x"), key="k", using="other") == row
        rows.limit_transaction(timedelta(seconds=7))
        rows.update(available_at=MOMENT)
        assert [claimed.id for claimed in rows.claim(500, 10**6)] == [row.pk]
        assert rows.refuse([Refusal(row.pk, "no")]) == 0
        assert rows.settle([row.pk]) == 1
        assert rows.postpone([row.pk]) == 1
        assert rows.expire([row.pk]) == 1
        assert rows.retry() == 1
        assert rows.mark_failed(row.pk, "x") == 1
        assert rows.mark_executed(row.pk) == 1
        assert rows.task_names() == [row.task]


# Two rows, or the bytes of two bodies and a half.
@pytest.mark.parametrize("limit", [{"INSERTED_ROWS": 2}, {"INSERTED_BYTES": 210}])
def test_many_are_written_in_statements_that_the_server_takes(
    limit: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limit.items():
        monkeypatch.setattr(insert_querysets, name, value)
    with CaptureQueriesContext(connection) as queries:
        written = messages.enqueue_many([record.s(str(number)) for number in range(5)])
    assert len(queries) == 3
    assert {row.pk for row in written} == set(messages.values_list("pk", flat=True))
    assert len(written) == 5

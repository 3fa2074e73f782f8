"""What waits, who holds vacuum back, and what it costs to ask."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from outbox import status_querysets
from outbox.models import OutboxMessage
from outbox.status_querysets import ErrorGroup, HeldKey, XminHolder, status_of
from tests.project.tasks import fail, record_once
from tests.sessions import another_session
from tests.unit.outbox.rows import empty_table, message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.django_db(databases=["default", "other"]), pytest.mark.database]

messages = OutboxMessage.objects
TASK = "tests.project.tasks.record"
MINUTE = timedelta(minutes=1)


def errors(*texts: str) -> list[dict[str, Any]]:
    return [{"at": "", "attempt": n, "error": text} for n, text in enumerate(texts)]


# What waits


def test_nothing_waits() -> None:
    for status in ("executed", "expired", "discarded", "published"):
        message(status)
    found = status_of("default")
    assert (found.pending, found.due, found.oldest_due_seconds) == (0, 0, 0)
    assert (found.dead, found.failed, found.stuck, found.errors) == (0, 0, 0, [])


def test_what_waits_is_counted() -> None:
    message(available_at=Now() + MINUTE)
    message(available_at=Now() - 3 * MINUTE)
    message(available_at=Now() - MINUTE)
    message("published", record_once.s("x"), available_at=Now() - 2 * MINUTE)  # to redeliver
    message("published", record_once.s("x"), available_at=Now() + MINUTE)
    message("published", record_once.s("x"))  # stuck
    message("published")
    message("dead")
    for _ in range(2):
        message("failed")
    found = status_of("default")
    assert (found.pending, found.due, found.stuck) == (3, 3, 1)
    assert (found.dead, found.failed) == (1, 2)
    assert 180 <= found.oldest_due_seconds < 190


def test_an_alias_has_a_status_of_its_own() -> None:
    message("dead", using="other")
    assert (status_of("default").dead, status_of("other").dead) == (0, 1)
    assert status_of("other").database == "other"


# Errors


def test_errors_that_differ_in_numbers_are_a_group() -> None:
    for text in (
        "LookupError: order 17 of 0193e5c6-9d7e-7aaa-8bbb-000000000001 is gone",
        "LookupError: order 4 of 0193e5c6-9d7e-7aaa-8bbb-00000000ffff is gone\nat line 5",
    ):
        message("failed", errors=errors("an earlier one", text))
    message("dead", errors=errors("LookupError: order 1 of 2 is gone"))
    message("failed", fail.s("x"), errors=errors("LookupError: order 1 of 2 is gone"))
    message("failed", errors=[])
    gone = "LookupError: order 4 of 0193e5c6-9d7e-7aaa-8bbb-00000000ffff is gone"
    assert status_of("default").errors == [
        ErrorGroup("failed", TASK, gone, 2),
        ErrorGroup("dead", TASK, "LookupError: order 1 of 2 is gone", 1),
        ErrorGroup("failed", "tests.project.tasks.fail", "LookupError: order 1 of 2 is gone", 1),
        ErrorGroup("failed", TASK, "", 1),
    ]


@pytest.mark.parametrize(("length", "told"), [(200, "x" * 200), (201, "x" * 199 + "…")])
def test_an_error_that_is_cut_says_so(length: int, told: str) -> None:
    message("failed", errors=errors("x" * length))
    assert [group.error for group in status_of("default").errors] == [told]


def test_the_newest_of_each_state_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_querysets, "GROUPED_MESSAGES", 2)
    for status in ("dead", "failed"):
        for age, error in enumerate(["newest", "older", "oldest"]):
            message(status, created_at=Now() - age * MINUTE, errors=errors(error))
    found = status_of("default")
    assert (found.dead, found.failed) == (3, 3)
    assert {(group.status, group.error) for group in found.errors} == {
        (status, error) for status in ("dead", "failed") for error in ("newest", "older")
    }


# Who holds vacuum back


@pytest.fixture
def other_session(transactional_db: None) -> Iterator[Callable[[str], None]]:
    """Execute a statement in another session, which stays open until the test has ended."""
    with another_session() as other:
        yield lambda sql: other.cursor().execute(sql)


def use_transactions(number: int = 5) -> None:
    for _ in range(number):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()")


def holder() -> XminHolder | None:
    return status_of("default").xmin_holder


@pytest.mark.django_db(transaction=True)
def test_a_session_with_an_old_snapshot_is_named(other_session: Callable[[str], None]) -> None:
    before = holder()
    assert before is None or before.transactions < 5
    other_session("SET application_name = 'a long report'")
    other_session("BEGIN ISOLATION LEVEL REPEATABLE READ")
    other_session("SELECT 1")
    use_transactions()
    found = holder()
    assert found is not None
    assert found.kind == "session"
    assert found.name.split()[0].isdigit()
    assert "a long report" in found.name
    assert "(idle in transaction)" in found.name
    assert found.transactions >= 5
    assert found.seconds is not None
    assert 0 <= found.seconds < 30


@pytest.mark.django_db(transaction=True)
def test_a_session_that_wrote_and_waits_is_named(other_session: Callable[[str], None]) -> None:
    """It has no snapshot between two statements, but the number of a transaction."""
    other_session("BEGIN")
    other_session("SELECT pg_current_xact_id()")
    use_transactions()
    found = holder()
    assert found is not None
    assert (found.kind, found.transactions >= 5) == ("session", True)
    assert "  " not in found.name, "an application without a name leaves no gap"


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_session_of_another_database_holds_nothing(other_session: Callable[[str], None]) -> None:
    other_session("BEGIN ISOLATION LEVEL REPEATABLE READ")
    other_session("SELECT 1")
    use_transactions()
    found = status_of("other").xmin_holder
    assert found is None or found.transactions < 5


# What it costs


ROWS = """
INSERT INTO outbox_outboxmessage (
    id, task, status, exchange, routing_key, queue, headers, properties, body, key,
    available_at, awaits_receipt, attempts, errors, created_at, published_at, executed_at
)
SELECT gen_random_uuid(), 'tests.project.tasks.record', status, '', 'celery', 'celery', '{}', '{}',
    '', '', CASE WHEN status = 'published' THEN moment END, true, 0, '[]', moment, moment,
    CASE WHEN status = 'executed' THEN moment END
FROM generate_series(1, %s) AS n, LATERAL (
    SELECT now() + n * interval '1 second' AS moment,
        CASE WHEN n %% 3 = 0 THEN 'published' ELSE 'executed' END AS status
) AS row
"""


@pytest.mark.parametrize("statistics", ["fresh", "of an empty table", "of a backlog"])
def test_nothing_is_read_whole(statistics: str) -> None:
    empty_table()
    with connection.cursor() as cursor:
        if statistics == "of a backlog":
            rows = [message().pk for _ in range(10)]
            cursor.execute("ANALYZE outbox_outboxmessage")
            messages.filter(pk__in=rows).delete()
        cursor.execute(ROWS, [100_000])
        if statistics == "fresh":
            cursor.execute("ANALYZE outbox_outboxmessage")
    for _ in range(3):
        message("failed")
    with CaptureQueriesContext(connection) as queries:
        status_of("default")
    (counts,) = (query["sql"] for query in queries if "count(*) FROM" in query["sql"])
    (groups,) = (query["sql"] for query in queries if "GROUP BY" in query["sql"])
    for statement in (counts, groups):
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}")
            ((found,),) = cursor.fetchall()
        assert found[0]["Plan"]["Shared Hit Blocks"] < 200, json.dumps(found)


# Ordering keys


@pytest.mark.parametrize("state", ["dead", "failed", "stuck"])
def test_a_key_whose_messages_wait_for_a_person_is_named(state: str) -> None:
    status = "published" if state == "stuck" else state
    for key in ("a", "b", "alone"):
        first = message(status, record_once.s("x"), ordering_key=key)
        if key != "alone":
            message(ordering_key=key)
            message(ordering_key=key)
            expected = first
    message(ordering_key="well")
    message(ordering_key="well")
    found = status_of("default")
    assert found.blocked == 5
    assert [held.ordering_key for held in found.held_keys] == ["a", "b"]
    assert found.held_keys[1] == HeldKey("b", state, str(expected.pk))


def test_a_failed_one_for_which_nobody_waits_holds_no_key() -> None:
    """It was published, and its key has gone on."""
    message("failed", ordering_key="k")
    message(ordering_key="k")
    message(ordering_key="k")
    found = status_of("default")
    assert (found.blocked, found.held_keys) == (1, [])


def test_what_waits_for_its_turn_is_not_due() -> None:
    for _ in range(3):
        message(ordering_key="k", available_at=Now() - MINUTE)
    found = status_of("default")
    assert (found.pending, found.due, found.blocked) == (3, 1, 2)

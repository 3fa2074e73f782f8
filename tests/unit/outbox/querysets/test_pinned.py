"""What is over costs little, even while an old transaction keeps vacuum from all of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from outbox.models import OutboxMessage
from tests.sessions import another_session
from tests.unit.outbox.querysets.test_claim import PUBLISHED_ROWS, claim_sql, look_sql
from tests.unit.outbox.rows import empty_table, message

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]

messages = OutboxMessage.objects
OVER = 100_000
SECOND = timedelta(seconds=1)

MAKE_DUE = "UPDATE outbox_outboxmessage SET available_at = created_at"
SETTLE = "UPDATE outbox_outboxmessage SET available_at = NULL"


@pytest.fixture
def pinned() -> Iterator[None]:
    """A transaction with a snapshot from before everything that the test does."""
    with another_session() as other, other.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT count(*) FROM outbox_outboxmessage")
        yield


def execute(statement: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def pages_read(statement: str) -> int:
    with transaction.atomic(), connection.cursor() as cursor:
        messages.limit_transaction(timedelta(minutes=1))
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}")
        read = cursor.fetchone()[0][0]["Plan"]
        return int(read["Shared Hit Blocks"] + read["Shared Read Blocks"])


def test_a_claim_from_the_watermark_does_not_read_past_what_is_over(pinned: None) -> None:
    execute(PUBLISHED_ROWS, OVER)
    execute(MAKE_DUE)
    execute(SETTLE)
    message()
    everything = pages_read(claim_sql())
    since = pages_read(claim_sql(timezone.now() - SECOND))
    assert everything > OVER / 1000, "nothing was in the way"
    assert since < 50
    execute("ANALYZE outbox_outboxmessage")
    assert pages_read(claim_sql(timezone.now() - SECOND)) < 50


def test_a_look_at_a_stretch_reads_past_what_is_over_in_it(pinned: None) -> None:
    """One entry a second."""
    execute(PUBLISHED_ROWS, OVER)
    execute(MAKE_DUE)
    execute(SETTLE)
    end = timezone.now() - OVER // 2 * SECOND
    narrow = pages_read(look_sql(end - 10 * SECOND, end))
    wide = pages_read(look_sql(end - OVER // 10 * SECOND, end))
    assert narrow < 50 < OVER / 1000 < wide
    execute("ANALYZE outbox_outboxmessage")
    assert pages_read(look_sql(end - 10 * SECOND, end)) < 50


def test_a_batch_of_a_purge_does_not_read_past_what_the_last_ones_deleted(pinned: None) -> None:
    execute(PUBLISHED_ROWS, OVER // 10)
    execute("UPDATE outbox_outboxmessage SET published_at = created_at")
    batches = messages.filter(status="published").purge_in_batches(SECOND, 1000, ["published"])
    read = []
    for _ in range(9):
        with CaptureQueriesContext(connection) as queries:
            assert next(batches) == 1000
        (select,) = (query["sql"] for query in queries if "SKIP LOCKED" in query["sql"])
        read.append(pages_read(select))
    # The statement as it was, read once more: past its own batch, and no other.
    assert max(read[1:]) < 2 * min(read[1:])


# A broker lost its queue: what it had is published once more, and what was executed since it was
# enqueued was published earlier.
EXECUTE_LATER_ONES = """
UPDATE outbox_outboxmessage
SET status = 'executed', executed_at = clock_timestamp(), published_at = created_at,
    awaits_receipt = true, queue = 'celery'
WHERE id NOT IN (SELECT id FROM outbox_outboxmessage ORDER BY created_at LIMIT 300)
"""
LOSE_THE_FIRST = """
UPDATE outbox_outboxmessage
SET published_at = clock_timestamp(), awaits_receipt = true, queue = 'celery',
    available_at = clock_timestamp()
WHERE status = 'published'
"""


@pytest.mark.parametrize("statistics", ["old", "fresh"])
def test_redeliveries_do_not_each_read_what_was_executed(statistics: str) -> None:
    """300 of them would have read 6 million rows; the claim would not have ended in its time."""
    empty_table()
    execute(PUBLISHED_ROWS, 20_000)
    execute(EXECUTE_LATER_ONES)
    execute(LOSE_THE_FIRST)
    if statistics == "fresh":
        execute("ANALYZE outbox_outboxmessage")
    assert pages_read(claim_sql()) < 20_000
    claimed = messages.claim(500, 10**7)
    assert len(claimed) == 300
    assert not any(message.overtaken for message in claimed)

"""The relay's SQL: claim, settle, refuse. It takes rows by their state and age, not by a filter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.db import connections, models

from outbox.conf import conf

if TYPE_CHECKING:
    from outbox.models import OutboxMessage

KEPT_ERRORS = 20
LAST_RECEIPTS = 5000
ERROR_LENGTH = 1000
TRANSACTION_TIMEOUT_SINCE = 170000


class ClaimedMessage(NamedTuple):
    """A row that this transaction has locked, with the moments that the database's clock tells."""

    id: UUID
    available_at: datetime
    task: str
    exchange: str
    routing_key: str
    queue: str
    headers: str
    properties: str
    body: bytes
    expires_at: datetime | None
    expires_in: float | None
    # It was published before and its receipt has not come.
    redelivery: bool
    # A message of the same queue that was published after it has its receipt.
    overtaken: bool
    ordering_key: str
    awaits_receipt: bool

    @property
    def expired(self) -> bool:
        return self.expires_in is not None and self.expires_in <= 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the broker did not take one message, and whether another attempt could change that."""

    id: UUID
    error: str
    permanent: bool = False


if TYPE_CHECKING:
    QuerySet = models.QuerySet[OutboxMessage]
else:
    QuerySet = models.QuerySet


class RelayQuerySet(QuerySet):
    """``OutboxMessage.objects.using(alias)``: what a relay does to the table of one alias."""

    def limit_transaction(self, claim_timeout: timedelta) -> datetime:
        """Let the server end this transaction when its client hangs, stops reading or is paused.

        Nor need its commit reach the disk at once: if the server crashes then, what was published
        is published again. And the planner, which cannot know how much is due, shall read in the
        claim's order and not sort a backlog. Returns the database's time.
        """
        connection = connections[self.db]
        milliseconds = str(int(claim_timeout.total_seconds() * 1000))
        limits = {
            "idle_in_transaction_session_timeout": milliseconds,
            "tcp_user_timeout": milliseconds,
            "synchronous_commit": "off",
            "enable_bitmapscan": "off",
        }
        if connection.pg_version >= TRANSACTION_TIMEOUT_SINCE:  # type: ignore[attr-defined]
            limits["transaction_timeout"] = milliseconds
        calls = ", ".join(["set_config(%s, %s, true)"] * len(limits))
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT clock_timestamp(), {calls}",
                [text for limit in limits.items() for text in limit],
            )
            moment: datetime = cursor.fetchone()[0]
            return moment

    def look(
        self, start: datetime | None = None, end: datetime | None = None
    ) -> tuple[datetime, bool]:
        """Return the database's time, and whether anything is due, for less than a claim costs.

        ``start``: as for a claim. ``end``: before which it became due. What another relay holds is
        due as well.
        """
        with connections[self.db].cursor() as cursor:
            cursor.execute(LOOK, [start or "-infinity", end or "infinity"])
            looked: tuple[datetime, bool] = cursor.fetchone()
            return looked

    def claim(
        self, rows: int, body_bytes: int, start: datetime | None = None
    ) -> list[ClaimedMessage]:
        """Lock the messages that have been due longest, bounded in rows and in bytes of bodies.

        ``start``: only those that became due from then on, and nothing before is read. Rows that
        another relay holds are skipped. The claim lasts as long as the transaction.
        """
        parameters: Any = [start or "-infinity", rows, conf.CLAIM_TIMEOUT, body_bytes]
        with connections[self.db].cursor() as cursor:
            cursor.execute(CLAIM, parameters)
            return [ClaimedMessage._make(row) for row in cursor.fetchall()]

    def settle(self, confirmed: Iterable[UUID]) -> int:
        """Mark claimed messages as published; those that await a receipt are looked at again."""
        parameters = {
            "ids": list(confirmed),
            "redeliver_after": conf.REDELIVER_AFTER,
            "max_redeliveries": conf.MAX_REDELIVERIES,
        }
        return self._execute(SETTLE, parameters)

    def postpone(self, waiting: Iterable[UUID]) -> int:
        """Look again later at claimed messages that may still be waiting in their queue."""
        return self._execute(POSTPONE, [conf.REDELIVER_AFTER, list(waiting)])

    def expire(self, expired: Iterable[UUID]) -> int:
        """Mark claimed messages as expired: their moment passed before they were published."""
        return self._execute(EXPIRE, [list(expired)])

    def refuse(self, refusals: Sequence[Refusal]) -> int:
        """Count a failed attempt on claimed messages; returns how many of them are dead now."""
        parameters: Any = {
            "ids": [refusal.id for refusal in refusals],
            "errors": [storable_text(refusal.error) for refusal in refusals],
            "permanent": [refusal.permanent for refusal in refusals],
            "max_attempts": conf.MAX_ATTEMPTS,
            "base": conf.BACKOFF_BASE,
            "cap": conf.BACKOFF_MAX,
            "kept": KEPT_ERRORS,
        }
        with connections[self.db].cursor() as cursor:
            cursor.execute(REFUSE, parameters)
            return sum(status == "dead" for (status,) in cursor)

    def _execute(self, sql: str, parameters: Any) -> int:
        with connections[self.db].cursor() as cursor:
            cursor.execute(sql, parameters)
            return int(cursor.rowcount)


def storable_text(error: str) -> str:
    text = error.encode("utf-8", "replace").decode().replace("\0", "")
    return text[:ERROR_LENGTH]


APPEND_ERROR = """
    CASE WHEN jsonb_array_length(errors) >= %(kept)s THEN errors - 0 ELSE errors END
    || jsonb_build_array(
        jsonb_build_object('at', clock_timestamp(), 'attempt', {attempt}, 'error', {error})
    )
"""

# statement_timestamp(), because clock_timestamp() is volatile and never an index condition.
DUE = """
    NOT blocked AND available_at >= %s::timestamptz AND available_at <= statement_timestamp()
"""

# In the index's order, or with old statistics the planner would walk the table.
LOOK = f"""
SELECT clock_timestamp(), (
    SELECT available_at FROM outbox_outboxmessage
    WHERE {DUE} AND available_at < %s::timestamptz
    ORDER BY available_at, id LIMIT 1
) IS NOT NULL
"""

# Python knows no moment before the year 1 or after 9999, which a row written in SQL may have: one
# such row would stop the relay for all.
#
# published_at is the moment of the settling, up to a claim's length after the publish: batches of
# two relays that differ by less may lie in the queue in any order. The last receipts tell enough: a
# search for a later one of each message would, after an outage, read for each of them whatever was
# executed since it was enqueued. They are read only if there is a redelivery.
CLAIM = f"""
WITH locked AS (
    SELECT *
    FROM outbox_outboxmessage
    WHERE {DUE}
    ORDER BY available_at, id
    LIMIT %s
    FOR UPDATE SKIP LOCKED
), bounded AS (
    SELECT *,
        CASE WHEN expires_at < '9999-12-31' THEN greatest(expires_at, 'epoch') END AS expiry,
        sum(octet_length(body)) OVER (ORDER BY available_at, id) - octet_length(body)
            AS bytes_before
    FROM locked
), receipts AS MATERIALIZED (
    SELECT queue, max(published_at) AS published_at
    FROM (
        SELECT queue, published_at FROM outbox_outboxmessage
        WHERE status = 'executed' ORDER BY created_at DESC, id DESC LIMIT {LAST_RECEIPTS}
    ) AS executed
    GROUP BY queue
)
SELECT id, greatest(available_at, 'epoch'), task, exchange, routing_key, queue, headers,
    properties, body, expiry,
    extract(epoch FROM expiry - clock_timestamp())::float8,
    status = 'published',
    status = 'published' AND coalesce(bounded.published_at + %s < (
        SELECT receipts.published_at FROM receipts WHERE receipts.queue = bounded.queue
    ), false),
    ordering_key, awaits_receipt
FROM bounded
WHERE bytes_before = 0 OR bytes_before < %s
ORDER BY available_at, id
"""

# IS TRUE, because with old statistics the planner would walk the index of all that is published.
SETTLE = """
UPDATE outbox_outboxmessage
SET status = 'published', published_at = clock_timestamp(),
    redeliveries = redeliveries + (status = 'published')::int,
    available_at = CASE
        WHEN awaits_receipt AND redeliveries + (status = 'published')::int < %(max_redeliveries)s
        THEN clock_timestamp()
            + %(redeliver_after)s * power(2, redeliveries + (status = 'published')::int)
    END
WHERE id = ANY(%(ids)s) AND (status IN ('pending', 'published')) IS TRUE
"""

POSTPONE = """
UPDATE outbox_outboxmessage
SET available_at = clock_timestamp() + %s
WHERE id = ANY(%s) AND (status = 'published') IS TRUE
"""

EXPIRE = """
UPDATE outbox_outboxmessage
SET status = 'expired', available_at = NULL
WHERE id = ANY(%s) AND (status IN ('pending', 'published')) IS TRUE
"""

# The wait is drawn from 0 to the bound, "full jitter", so that many messages do not come back at
# once: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
REFUSE = f"""
UPDATE outbox_outboxmessage AS message
SET attempts = attempts + 1,
    errors = {APPEND_ERROR.format(attempt="attempts + 1", error="refusal.error")},
    status = CASE WHEN dies AND status = 'pending' THEN 'dead' ELSE status END,
    available_at = CASE WHEN NOT dies THEN
        clock_timestamp() + random() * least(%(cap)s, %(base)s * power(2, least(attempts, 30)))
    END
FROM (
    SELECT refused.id, error, permanent OR locked.attempts + 1 >= %(max_attempts)s AS dies
    FROM unnest(%(ids)s::uuid[], %(errors)s::text[], %(permanent)s::bool[])
        AS refused (id, error, permanent)
    JOIN outbox_outboxmessage AS locked USING (id)
) AS refusal
WHERE message.id = refusal.id AND message.status IN ('pending', 'published')
RETURNING message.status
"""

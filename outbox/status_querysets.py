"""The SQL of ``manage.py outbox_status``: what waits, and for whom. An index serves each count."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import connections, transaction

# Of each state, so that a million failures of one night do not cost a minute.
GROUPED_MESSAGES = 10_000
GROUPS = 20
SLOT_INACTIVE_SINCE = 170000


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Messages of one task whose last errors differ in numbers and ids only; ``error`` is the
    newest of them.
    """

    status: str
    task: str
    error: str
    count: int


@dataclass(frozen=True, slots=True)
class XminHolder:
    """What keeps vacuum from the newest dead rows: a session, a slot or a prepared transaction.

    ``seconds``: since it began, None where the server does not tell. ``transactions``: how many
    have begun since.
    """

    kind: str
    name: str
    seconds: float | None
    transactions: int


@dataclass(frozen=True, slots=True)
class HeldKey:
    """An ordering key whose messages wait for one that is dead, failed or stuck."""

    ordering_key: str
    state: str
    message: str


@dataclass(frozen=True, slots=True)
class Status:
    """What there is to know of one database's outbox. Ages are seconds of the database's clock.

    ``due`` counts what a relay would take now, redeliveries too. ``errors`` are of the newest
    10,000 dead and 10,000 failed messages, the largest groups first. ``blocked`` messages wait for
    their turn; ``held_keys`` are 20 at most, of 10,000 messages of each state.
    """

    database: str
    pending: int
    due: int
    oldest_due_seconds: float
    dead: int
    failed: int
    stuck: int
    blocked: int
    held_keys: list[HeldKey]
    errors: list[ErrorGroup]
    xmin_holder: XminHolder | None


def status_of(using: str) -> Status:
    """Look at one database alias."""
    connection = connections[using]
    with transaction.atomic(using=using), connection.cursor() as cursor:
        # Statistics that were taken of a backlog would have all of the history read.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(COUNTS)
        pending, due, oldest_due_seconds, dead, failed, stuck, blocked = cursor.fetchone()
        cursor.execute(HELD_KEYS, {"messages": GROUPED_MESSAGES, "keys": GROUPS})
        held_keys = [HeldKey(*row) for row in cursor]
        cursor.execute(ERROR_GROUPS, {"messages": GROUPED_MESSAGES, "groups": GROUPS})
        errors = [ErrorGroup(*row) for row in cursor]
        recent = connection.pg_version >= SLOT_INACTIVE_SINCE  # type: ignore[attr-defined]
        cursor.execute(XMIN_HOLDER.format(inactive_since="inactive_since" if recent else "NULL"))
        holder = cursor.fetchone()
    return Status(
        using,
        pending,
        due,
        oldest_due_seconds,
        dead,
        failed,
        stuck,
        blocked,
        held_keys,
        errors,
        XminHolder(*holder) if holder else None,
    )


COUNTS = """
SELECT
    (SELECT count(*) FROM outbox_outboxmessage WHERE status = 'pending'),
    (SELECT count(*) FROM outbox_outboxmessage
        WHERE available_at <= statement_timestamp() AND NOT blocked),
    coalesce(extract(epoch FROM statement_timestamp() - (
        SELECT available_at FROM outbox_outboxmessage
        WHERE available_at <= statement_timestamp() AND NOT blocked ORDER BY available_at LIMIT 1
    )), 0)::float8,
    (SELECT count(*) FROM outbox_outboxmessage WHERE status = 'dead'),
    (SELECT count(*) FROM outbox_outboxmessage WHERE status = 'failed'),
    (SELECT count(*) FROM outbox_outboxmessage
        WHERE status = 'published' AND awaits_receipt AND available_at IS NULL),
    (SELECT count(*) FROM outbox_outboxmessage WHERE blocked)
"""

# Of the newest messages that wait for a person: those for which others wait.
HELD_KEYS = """
SELECT ordering_key, state, id::text
FROM (
    (SELECT id, ordering_key, 'dead' AS state FROM outbox_outboxmessage
        WHERE status = 'dead' ORDER BY created_at DESC, id DESC LIMIT %(messages)s)
    UNION ALL
    (SELECT id, CASE WHEN awaits_receipt THEN ordering_key ELSE '' END, 'failed'
        FROM outbox_outboxmessage
        WHERE status = 'failed' ORDER BY created_at DESC, id DESC LIMIT %(messages)s)
    UNION ALL
    (SELECT id, ordering_key, 'stuck' FROM outbox_outboxmessage
        WHERE status = 'published' AND awaits_receipt AND available_at IS NULL
        ORDER BY created_at DESC, id DESC LIMIT %(messages)s)
) AS newest
WHERE ordering_key <> '' AND (
    SELECT true FROM outbox_outboxmessage AS waiting
    WHERE waiting.ordering_key = newest.ordering_key AND waiting.blocked LIMIT 1
) IS NOT NULL
ORDER BY 1
LIMIT %(keys)s
"""

# Ids, digests and numbers tell errors of one kind apart: "order 17 is gone", "order 18 is gone".
# The newest stands for its group.
ERROR_GROUPS = r"""
SELECT status, task, (array_agg(error ORDER BY created_at DESC, id DESC))[1], count(*)
FROM (
    (SELECT id, created_at, status, task, errors FROM outbox_outboxmessage
        WHERE status = 'dead' ORDER BY created_at DESC, id DESC LIMIT %(messages)s)
    UNION ALL
    (SELECT id, created_at, status, task, errors FROM outbox_outboxmessage
        WHERE status = 'failed' ORDER BY created_at DESC, id DESC LIMIT %(messages)s)
) AS newest,
LATERAL (
    SELECT CASE WHEN length(line) > 200 THEN left(line, 199) || '…' ELSE line END AS error
    FROM split_part(coalesce(errors -> -1 ->> 'error', ''), E'\n', 1) AS line
) AS last
GROUP BY status, task, regexp_replace(
    error, '[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{16,}|[0-9]+', '#', 'g'
)
ORDER BY 4 DESC, 1, 2, 3
LIMIT %(groups)s
"""

# Those of other databases do not matter to this one's tables, but for a standby's feedback.
XMIN_HOLDER = r"""
SELECT kind, name, greatest(extract(epoch FROM clock_timestamp() - since), 0)::float8, transactions
FROM (
    SELECT 'session' AS kind,
        concat_ws(' ', pid, usename, nullif(application_name, ''), '(' || state || ')') AS name,
        xact_start AS since,
        greatest(age(backend_xmin), age(backend_xid)) AS transactions
    FROM pg_stat_activity
    WHERE (datname = current_database() OR backend_type = 'walsender')
        AND pid <> pg_backend_pid()
        AND query !~* '^\s*(autovacuum: )?vacuum'  -- which has a snapshot that nothing waits for
    UNION ALL
    SELECT 'replication slot', slot_name || CASE WHEN active THEN '' ELSE ' (inactive)' END,
        {inactive_since}, age(xmin)
    FROM pg_replication_slots
    UNION ALL
    SELECT 'prepared transaction', gid, prepared, age(transaction)
    FROM pg_prepared_xacts
    WHERE database = current_database()
) AS holders
WHERE transactions IS NOT NULL
ORDER BY transactions DESC, since
LIMIT 1
"""

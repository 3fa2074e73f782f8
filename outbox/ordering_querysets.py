"""The SQL of ordering keys: whose turn it is.

A message with a key is enqueued *blocked*, and opened when none of its key is open. Whoever ends
an open message goes on with its key in the same transaction. The key's row is the lock that both
need, and a unique index has the last word: no key has two open messages.

Who holds a key's row waits for no message's row: so no two of these wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connections, transaction
from django.db.models import Q

# A message that is not over and not waiting for its turn. An unguarded one is over when it is
# published: nobody tells when it has run.
OPEN = (
    Q(blocked=False)
    & ~Q(ordering_key="")
    & (
        Q(status__in=("pending", "dead"))
        | Q(status__in=("published", "failed"), awaits_receipt=True)
    )
)


def take(using: str, counts: Mapping[str, int]) -> dict[str, int]:
    """Lock keys until the transaction ends, and take so many sequences of each; return the last.

    Producers of a key wait for each other here, which makes the sequences the order of commits.
    """
    with connections[using].cursor() as cursor:
        cursor.execute(TAKE, [list(counts), list(counts.values())])
        return dict(cursor.fetchall())


def lock(using: str, keys: Collection[str]) -> None:
    """Lock keys until the transaction ends, in the order in which everybody does."""
    with connections[using].cursor() as cursor:
        cursor.execute(LOCK, [list(keys)])


def open_next(using: str, keys: Collection[str]) -> dict[UUID, datetime]:
    """Open the first blocked message of each locked key that has no open one.

    Returns when each is available. Not in the statement that locks: it must see what the last
    holder of the lock has committed.
    """
    with connections[using].cursor() as cursor:
        cursor.execute(OPEN_NEXT, [list(keys)])
        return dict(cursor.fetchall())


def advance(using: str, keys: Collection[str]) -> None:
    """Go on with keys of which a message may be over. Nothing happens where none is."""
    lock(using, keys)
    open_next(using, keys)


def advance_free(using: str, keys: Collection[str]) -> set[str]:
    """Go on with those keys that nobody holds; return the others. It waits for nobody."""
    with (
        transaction.atomic(using=using, savepoint=False),
        connections[using].cursor() as cursor,
    ):
        cursor.execute(LOCK_FREE, [list(keys)])
        free = {key for (key,) in cursor}
        if free:
            open_next(using, free)
        if len(free) == len(keys):
            return set()
        cursor.execute(KNOWN, [list(keys)])
        return {key for (key,) in cursor} - free


def advancing(key: str) -> list[tuple[str, list[Any]]]:
    """Return ``advance`` of one key as statements, for others to execute with their own."""
    return [(LOCK, [[key]]), (OPEN_NEXT, [[key]])]


def idle_keys(using: str, after: str, limit: int) -> tuple[list[str], str]:
    """Return keys with blocked messages and no open one, of the next ``limit`` that have any.

    And the key after which to go on; ``""``: from the start.
    """
    with connections[using].cursor() as cursor:
        cursor.execute(IDLE_KEYS, {"after": after, "limit": limit})
        found = cursor.fetchall()
    idle = [key for key, is_open in found if not is_open]
    return idle, found[-1][0] if len(found) == limit else ""


def purge_keys(using: str, batch_size: int = 1000) -> int:
    """Delete the keys that have no message; return how many. A key that somebody holds stays.

    Each ``batch_size`` of them is a transaction of its own.
    """
    deleted, after = 0, ""
    while True:
        with transaction.atomic(using=using), connections[using].cursor() as cursor:
            cursor.execute(USED_KEYS, {"after": after, "limit": batch_size})
            found = cursor.fetchall()
            if empty := [key for key, is_used in found if not is_used]:
                cursor.execute(LOCK_FREE, [empty])
                cursor.execute(PURGE, [[key for (key,) in cursor]])
                deleted += cursor.rowcount
        if len(found) < batch_size:
            return deleted
        after = found[-1][0]


# Keys are sorted by their code points, here, in Python and in the indexes.
TAKE = """
INSERT INTO outbox_orderingkey AS stored (key, last_sequence)
SELECT key, taken
FROM unnest(%s::text[], %s::bigint[]) AS new (key, taken)
ORDER BY key COLLATE "C"
ON CONFLICT (key) DO UPDATE SET last_sequence = stored.last_sequence + excluded.last_sequence
RETURNING key, last_sequence
"""

LOCK = "SELECT key FROM outbox_orderingkey WHERE key = ANY(%s::text[]) ORDER BY key FOR UPDATE"

LOCK_FREE = f"{LOCK} SKIP LOCKED"

KNOWN = "SELECT key FROM outbox_orderingkey WHERE key = ANY(%s::text[])"

# With statistics of an empty table any join or index looks as good as another: so each key is
# looked up by itself (no EXISTS, which may become a join), and rows are found by their place.
OPEN_ONE = """
SELECT ordering_key FROM outbox_outboxmessage
WHERE ordering_key = {key} AND ordering_key <> '' AND NOT blocked AND (
    status IN ('pending', 'dead') OR (status IN ('published', 'failed') AND awaits_receipt)
)
LIMIT 1
"""

# A message that is locked belongs to a late receipt, which ends it and goes on with its key.
# IS NOT FALSE, because no index shall serve it: it would be read whole. The moment is new, because
# relays look for what has become due lately.
OPEN_NEXT = f"""
UPDATE outbox_outboxmessage
SET blocked = false, available_at = greatest(available_at, clock_timestamp())
WHERE blocked IS NOT FALSE AND ctid = ANY(ARRAY(
    SELECT ctid FROM outbox_outboxmessage
    WHERE blocked IS NOT FALSE AND ctid = ANY(ARRAY(
        SELECT (
            SELECT ctid FROM outbox_outboxmessage
            WHERE ordering_key = turn.key AND blocked ORDER BY sequence LIMIT 1
        )
        FROM unnest(%s::text[]) AS turn (key)
        WHERE ({OPEN_ONE.format(key="turn.key")}) IS NULL
    ))
    FOR UPDATE SKIP LOCKED
))
RETURNING id, available_at
"""

# From key to key down the index, however many messages of each are blocked.
IDLE_KEYS = f"""
WITH RECURSIVE walk (key, place) AS (
    (
        SELECT ordering_key, 1 FROM outbox_outboxmessage
        WHERE blocked AND ordering_key > %(after)s ORDER BY ordering_key LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT ordering_key FROM outbox_outboxmessage
        WHERE blocked AND ordering_key > walk.key ORDER BY ordering_key LIMIT 1
    ), place + 1
    FROM walk WHERE key IS NOT NULL AND place < %(limit)s
)
SELECT key, ({OPEN_ONE.format(key="walk.key")}) IS NOT NULL
FROM walk WHERE key IS NOT NULL ORDER BY place
"""

USED_KEYS = """
SELECT key, (
    SELECT true FROM outbox_outboxmessage
    WHERE ordering_key = batch.key AND ordering_key <> '' LIMIT 1
) IS NOT NULL
FROM (
    SELECT key FROM outbox_orderingkey WHERE key > %(after)s ORDER BY key LIMIT %(limit)s
) AS batch
ORDER BY key
"""

# Once they are locked: what a producer of the key has committed meanwhile must be seen.
PURGE = """
DELETE FROM outbox_orderingkey WHERE key = ANY(%s::text[]) AND (
    SELECT true FROM outbox_outboxmessage WHERE ordering_key = key AND ordering_key <> '' LIMIT 1
) IS NULL
"""

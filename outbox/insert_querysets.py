"""The SQL that writes new messages."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from datetime import timedelta
from json import dumps
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from django.db import connections

from outbox import wire

if TYPE_CHECKING:
    from outbox.models import OutboxMessage

Draft: TypeAlias = "tuple[OutboxMessage, timedelta | None]"
"""A message that is not written yet, and how long after that it becomes available."""

# What one INSERT takes; PostgreSQL's limit for the JSON that carries them is 256 MiB.
INSERTED_ROWS = 5000
INSERTED_BYTES = 64 * 1024 * 1024


def insert(drafts: list[Draft], alias: str) -> dict[UUID, Any]:
    """Write messages; return the moments of each as they are read, but for a known key's."""
    rows = [_row(draft, delay) for draft, delay in drafts]
    values, parameters = (
        (ONE_ROW, rows[0]) if len(rows) == 1 else (ROWS, [dumps(rows, ensure_ascii=False)])
    )
    conflict = ON_CONFLICT if any(draft.key for draft, _ in drafts) else ""
    with connections[alias].cursor() as cursor:
        cursor.execute(INSERT.format(values=values, conflict=conflict), parameters)
        return {id: times for id, *times in cursor.fetchall()}


def _row(message: OutboxMessage, delay: timedelta | None) -> list[Any]:
    """Return the message as values that JSON has, for ``ROW``."""
    return [
        str(message.id),
        message.task,
        message.exchange,
        message.routing_key,
        message.queue,
        wire.json_dumps(message.headers),
        wire.json_dumps(message.properties),
        b64encode(message.body).decode(),
        message.key,
        message.available_at and message.available_at.isoformat(),
        None if delay is None else delay.total_seconds(),
        message.expires_at and message.expires_at.isoformat(),
        message.awaits_receipt,
        message.ordering_key,
        message.sequence,
        message.blocked,
    ]


def in_parts(drafts: list[Draft]) -> Iterator[list[Draft]]:
    """Yield parts that one statement takes."""
    part: list[Draft] = []
    size = 0
    for draft in drafts:
        size += len(draft[0].body)
        if part and (size > INSERTED_BYTES or len(part) == INSERTED_ROWS):
            yield part
            part, size = [], len(draft[0].body)
        part.append(draft)
    yield part


INSERT = """
INSERT INTO outbox_outboxmessage (
    id, task, status, exchange, routing_key, queue, headers, properties, body, key,
    available_at, expires_at, awaits_receipt, attempts, errors, created_at,
    ordering_key, sequence, blocked
)
SELECT {values}
{conflict}
RETURNING id, available_at, created_at, expires_at
"""

ROW = """
    {0}::uuid, {1}, 'pending', {2}, {3}, {4}, {5}, {6}, decode({7}, 'base64'), {8},
    coalesce(
        {9}::timestamptz, clock_timestamp() + make_interval(secs => coalesce({10}::float8, 0))
    ),
    {11}::timestamptz, {12}::boolean, 0, '[]', clock_timestamp(),
    {13}, {14}::bigint, {15}::boolean
"""
ONE_ROW = ROW.format(*["%s"] * 16)
# One value: to put each of a hundred rows' into the statement takes longer than to insert them.
ROWS = (
    ROW.format(*[f"(r ->> {position})" for position in range(16)])
    + "FROM jsonb_array_elements(%s::jsonb) AS messages (r)"
)

ON_CONFLICT = "ON CONFLICT (key, task) WHERE key <> '' DO NOTHING"

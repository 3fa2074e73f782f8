"""Who held and who settled which message: kept by PostgreSQL, whatever the relays' code is.

A process is known by its connections' application name.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Iterator

LAY = """
CREATE FUNCTION project_note_settled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO project_settled (message_id, relay, at)
    VALUES (NEW.id, current_setting('application_name'), clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER project_note_settled AFTER UPDATE ON outbox_outboxmessage FOR EACH ROW
WHEN (NEW.status = 'published' AND NEW.published_at IS DISTINCT FROM OLD.published_at)
EXECUTE FUNCTION project_note_settled()
"""

CLEAR = "DROP FUNCTION IF EXISTS project_note_settled CASCADE"

# A row that a living transaction has locked names that transaction.
NOTE_HELD = """
INSERT INTO project_held (message_id, relay, at)
SELECT message.id, activity.application_name, clock_timestamp()
FROM outbox_outboxmessage AS message
JOIN pg_stat_activity AS activity ON activity.backend_xid = message.xmax
WHERE activity.application_name = %s AND message.available_at IS NOT NULL
"""

# Of the last ones only: the table grows for hours.
LAST_SETTLED = """
SELECT coalesce(max(id) FILTER (WHERE relay = %s), 0)
FROM (SELECT id, relay FROM project_settled ORDER BY id DESC LIMIT 1000) AS recent
"""

TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %s
"""


@contextmanager
def trail(using: str = "default") -> Iterator[None]:
    """Keep note of what relays settle."""
    _execute(using, CLEAR)
    _execute(using, LAY)
    try:
        yield
    finally:
        _execute(using, CLEAR)


def note_held(relay: str, using: str = "default") -> int:
    """Keep note of what a relay holds in its claim now; return how many messages that are."""
    return _execute(using, NOTE_HELD, relay)


def settled_by(relay: str, using: str = "default") -> int:
    """Read a number that grows with each message that a relay settles."""
    with connections[using].cursor() as cursor:
        cursor.execute(LAST_SETTLED, [relay])
        return int(cursor.fetchone()[0])


def terminate(name: str, using: str = "default") -> None:
    """End the sessions of a process, as an administrator does."""
    _execute(using, TERMINATE, name)


def _execute(using: str, sql: str, *parameters: str) -> int:
    with connections[using].cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return int(cursor.rowcount)

"""Who has changed rows: all SQL of the test kit.

A trigger on each table notes each row that changes. The note is part of the transaction that makes
the change, so what is rolled back leaves none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from django.apps import apps
from django.db import connections, transaction

RECEIPTS = ["outbox_outboxmessage"]
"""Tables where only a new row is an effect: a duplicate writes its receipt on the old one."""

REMOVE = """
DROP FUNCTION IF EXISTS idempotency_testing_note() CASCADE;
DROP TABLE IF EXISTS idempotency_testing_changes
"""

LIMIT_WAIT = "SET LOCAL lock_timeout = '10s'"

# Compared as bytes: not every type has an equality.
PREPARE = """
CREATE TABLE idempotency_testing_changes (backend integer, name text, change text);
CREATE FUNCTION idempotency_testing_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW *= OLD THEN
            RETURN NULL;
        END IF;
    END IF;
    INSERT INTO idempotency_testing_changes
    VALUES (pg_backend_pid(), TG_TABLE_NAME, lower(TG_OP));
    RETURN NULL;
END
$$
"""

TABLES = """
SELECT
    format(
        'CREATE TRIGGER idempotency_testing AFTER %%s ON %%s '
        'FOR EACH ROW EXECUTE FUNCTION idempotency_testing_note()',
        CASE WHEN relname = ANY(%(receipts)s) THEN 'INSERT' ELSE 'INSERT OR UPDATE OR DELETE' END,
        oid::regclass
    )
FROM pg_class
WHERE relkind IN ('r', 'p') AND NOT relispartition AND relpersistence <> 't'
    AND pg_table_is_visible(oid) AND relnamespace <> 'pg_catalog'::regnamespace
    AND relname <> 'idempotency_testing_changes' AND relname <> ALL(%(ours)s)
"""

TAKE = "DELETE FROM idempotency_testing_changes RETURNING backend, name, change"


class Changes:
    """The changes on one database alias since they are watched."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._calls = 0
        self._rows: Counter[str] = Counter()

    def calls(self) -> int:
        """Return how many calls have committed a change so far.

        Calls that overlap differ in their connections; between others somebody has to ask.
        """
        with connections[self._using].cursor() as cursor:
            cursor.execute(TAKE)
            taken = cursor.fetchall()
        self._calls += len({backend for backend, _, _ in taken})
        self._rows.update(f"{change} {name}" for _, name, change in taken)
        return self._calls

    def __str__(self) -> str:
        return ", ".join(f"{count} x {what}" for what, count in sorted(self._rows.items()))


@contextmanager
def watched(using: str) -> Iterator[Changes]:
    """Watch the tables of an alias, all but those of ``idempotency``."""
    ours = [model._meta.db_table for model in apps.get_app_config("idempotency").get_models()]
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        cursor.execute(LIMIT_WAIT)
        # Those of a test that was killed.
        cursor.execute(REMOVE)
        cursor.execute(PREPARE)
        cursor.execute(TABLES, {"ours": ours, "receipts": RECEIPTS})
        for (statement,) in cursor.fetchall():
            cursor.execute(statement)
    try:
        yield Changes(using)
    finally:
        with transaction.atomic(using=using), connections[using].cursor() as cursor:
            cursor.execute(LIMIT_WAIT)
            cursor.execute(REMOVE)

"""A second session with the database, for what somebody else does meanwhile."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.db import connection

from tests.helpers import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper


@contextmanager
def another_session() -> Iterator[BaseDatabaseWrapper]:
    """Another connection with the default alias's database.

    Its client closes it, and PostgreSQL ends it some time later; until then it has its locks and
    its snapshot. So the block's end waits for that: they would last into the next test.
    """
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
        yield other
    finally:
        other.close()
    wait_for(lambda: not lives(pid))


def lives(pid: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")  # a transaction reads it but once
        cursor.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid])
        return cursor.fetchone() is not None

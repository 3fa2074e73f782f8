"""Database aliases as the commands of both apps take them: what is wrong with one is one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, Error, OperationalError, ProgrammingError, connections


class Unavailable(CommandError):
    """The database cannot be reached at this moment."""


def aliases_of(databases: str | Sequence[str] | None, returncode: int = 1) -> list[str]:
    """Return the aliases that were given, each once; ``call_command`` may give one as text.

    Raises ``CommandError`` for one that is not in the settings.
    """
    given = [databases] if isinstance(databases, str) else databases
    aliases = list(dict.fromkeys(given or [DEFAULT_DB_ALIAS]))
    for alias in aliases:
        if alias not in connections:
            raise CommandError(
                f"There is no database {alias!r} in DATABASES: {', '.join(connections)}.",
                returncode=returncode,
            )
    return aliases


@contextmanager
def database_errors(alias: str, returncode: int = 1) -> Iterator[None]:
    """Make a ``CommandError`` of what is wrong with the database."""
    try:
        yield
    except (Error, ImproperlyConfigured) as error:
        kind = Unavailable if isinstance(error, OperationalError) else CommandError
        raise kind(f"Database {alias!r}: {_one_line(error)}", returncode=returncode) from error


def _one_line(error: Exception) -> str:
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, ProgrammingError) and "does not exist" in first:
        return f"{first} Run manage.py migrate."
    return first

"""Settings: typed defaults, declared once, read from Django's settings at each use."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

LONGEST = timedelta(days=36_500)
"""A century: a moment that far ahead is one for Python, PostgreSQL and Redis still."""


class AppSettings:
    """Base of an app's settings: upper-case class attributes are the defaults.

    ``PREFIX + NAME`` in Django's settings overrides a default. It is read at each access, so
    ``override_settings`` works. A default that is a ``timedelta`` is a duration: the setting may
    be a ``timedelta`` or a number of seconds, and what is read is always a ``timedelta``.

    The shape (a class of annotated defaults, read lazily) is borrowed from procrastinate.
    """

    PREFIX: ClassVar[str]

    def __getattribute__(self, name: str) -> Any:
        default = super().__getattribute__(name)
        if not name.isupper() or name == "PREFIX":
            return default
        value = getattr(settings, self.PREFIX + name, default)
        if value is default:
            return default
        problem = self._problem(name, value, default)
        if problem:
            raise ImproperlyConfigured(problem)
        if isinstance(default, timedelta) and not isinstance(value, timedelta):
            return timedelta(seconds=value)
        return value

    def problems(self) -> Iterator[str]:
        """Yield a sentence for each setting under the prefix that is unknown or ill-typed."""
        defaults = self._defaults()
        for full_name in dir(settings):
            if not full_name.startswith(self.PREFIX):
                continue
            name = full_name.removeprefix(self.PREFIX)
            if name in defaults:
                problem = self._problem(name, getattr(settings, full_name), defaults[name])
                if problem:
                    yield problem
            else:
                close = difflib.get_close_matches(name, defaults, n=1)
                hint = f" Did you mean {self.PREFIX}{close[0]}?" if close else ""
                yield f"{full_name} is not a setting of this app.{hint}"

    def _defaults(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(type(self)).items()
            if name.isupper() and name != "PREFIX"
        }

    def _problem(self, name: str, value: Any, default: Any) -> str | None:
        if isinstance(default, timedelta):
            kinds: tuple[type, ...] = (timedelta, int, float)
            wanted = "a timedelta or a number of seconds"
        else:
            kinds = (type(default),)
            wanted = f"a value of type {type(default).__name__}"
        if not isinstance(value, kinds) or (
            isinstance(value, bool) and not isinstance(default, bool)
        ):
            return f"{self.PREFIX}{name} must be {wanted}, not {value!r}."
        if isinstance(value, float) and not math.isfinite(value):
            return f"{self.PREFIX}{name} must be {wanted}, not {value!r}."
        zero: Any = timedelta(0) if isinstance(value, timedelta) else 0
        if not isinstance(value, (bool, str, tuple)) and value <= zero:
            return f"{self.PREFIX}{name} must be greater than zero, not {value!r}."
        if isinstance(default, timedelta):
            longest: Any = LONGEST if isinstance(value, timedelta) else LONGEST.total_seconds()
            if value > longest:
                return f"{self.PREFIX}{name} must be at most {LONGEST}, not {value!r}."
        return None


class IdempotencySettings(AppSettings):
    """The settings of ``idempotency``; each is overridden by ``IDEMPOTENCY_<NAME>``."""

    PREFIX = "IDEMPOTENCY_"

    TTL: timedelta = timedelta(days=7)
    """How long a finished key is kept and recognised. Seconds or timedelta.

    Longer than the longest time in which a duplicate can still arrive: the broker's visibility
    timeout, a task's retries, and the time in which someone may retry a message by hand.
    """

    SECRET: str = ""
    """Makes HMACs of the keys of ``make_key()`` and of fingerprints, where they are digests.

    A digest of something that can be guessed, such as an e-mail address or an amount, can be
    guessed too; without the secret it cannot. All processes have the same one. Another secret
    makes other digests: duplicates of before are not recognised by a key of ``make_key()``, or are
    refused for their fingerprint, and providers are given other derived keys. Change it only when
    nothing of the last ``IDEMPOTENCY_TTL`` can come again.
    """

    MAX_REQUEST_BYTES: int = 2**20
    """The largest request body that a guarded view takes; a larger one is answered 413.

    The body is held in memory, so Django's ``DATA_UPLOAD_MAX_MEMORY_SIZE`` bounds it too.
    """

    MAX_RESPONSE_BYTES: int = 2**18
    """The largest response body that is kept; a retry of what had a larger one is answered 409."""

    REPLAY_HEADERS: tuple[str, ...] = ()
    """Response headers that are replayed besides the usual ones (``Location``, ``ETag`` and more).

    Cookies, credentials, dates and what belongs to one connection are never replayed.
    """

    DOCUMENTATION_URL: str = ""
    """Where your API tells its clients about ``Idempotency-Key``; linked from the 400 answers."""

    LEASE: timedelta = timedelta(seconds=60)
    """How long leased work waits for a sign of life of its owner. Seconds or timedelta.

    A heartbeat extends it each third of that time, so it need not be as long as the work.
    """

    REDIS_URL: str = ""
    """The Redis or Valkey server of guards with ``store="redis"``, such as
    ``redis://localhost:6379/0``. It must forget nothing: ``appendonly yes``,
    ``maxmemory-policy noeviction``.
    """


conf = IdempotencySettings()


def duration(
    value: float | timedelta, name: str, *, least: timedelta = timedelta(microseconds=1)
) -> timedelta:
    """Return a duration given in seconds or as a timedelta.

    Raises ``TypeError`` for another type and ``ValueError`` for less than ``least`` or more than
    ``LONGEST``; both name it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
        raise TypeError(f"{name}= is seconds or a timedelta, not {value!r}.")
    try:
        given = value if isinstance(value, timedelta) else timedelta(seconds=value)
    except (OverflowError, ValueError):  # infinity, NaN
        raise ValueError(f"{name}= must be at most {LONGEST}, not {value!r}.") from None
    if given < least:
        raise ValueError(f"{name}= must be at least {least}, not {value!r}.")
    if given > LONGEST:
        raise ValueError(f"{name}= must be at most {LONGEST}, not {value!r}.")
    return given

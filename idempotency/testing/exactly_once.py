"""``assert_exactly_once``: race an operation, deliver it again, count what it did."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections
from django.http import HttpResponse
from django.http.response import HttpResponseBase

from idempotency.exceptions import ImproperlyUsed, KeyInProgress
from idempotency.testing.changes import Changes, watched
from idempotency.testing.racing import Reply, race

T = TypeVar("T")

IN_PROGRESS = "idempotency-in-progress"
"""The problem code of a response that says so."""


def assert_exactly_once(
    operation: Callable[[], T],
    *,
    effects: Callable[[], int] | None = None,
    expected: int = 1,
    racers: int = 8,
    timeout: float = 30,
    using: str = DEFAULT_DB_ALIAS,
) -> T:
    """Race an operation, then deliver it once more; fail unless it took effect once.

    ``racers`` threads, each with database connections of its own, call ``operation()`` at once
    and meet at each SQL statement, so that all have looked before one has written. Those that get
    ``KeyInProgress``, or that answer of a guarded view, call again after the others, one by one.
    Then it is called once more, like a redelivery. Returns the result.

    Raises ``AssertionError`` that tells how many effects there were, which results differ, and
    what was raised (anything but the ``KeyInProgress`` of a racer):

    ``effects``
        Counts the effects so far, of all calls: ``Payment.objects.count``, the charges in a
        gateway's ledger, a score. By default an effect is *a call that has committed a change*: a
        row inserted, updated to something else, or deleted, in any table of ``using`` but those
        of ``idempotency``; in the outbox's only a new message is one. What happens elsewhere, such
        as an e-mail, the default does not see, and a call without an effect that it sees fails.
    ``expected``
        By how much one execution raises ``effects()``.
    ``racers``
        How many call at once; at least two.
    ``timeout``
        Seconds in which each round has to end.
    ``using``
        The database alias whose tables are watched.

    Results are equal if value and type are, inside of containers too; two HTTP responses if status
    and body are. Raises ``ImproperlyUsed`` inside a transaction, where nothing can race: the test
    has to be one that commits (``@pytest.mark.django_db(transaction=True)``, which the fixture of
    this name brings along, or ``TransactionTestCase``). Tables are watched with triggers, which
    are gone afterwards.
    """
    if racers < 2:  # noqa: PLR2004
        raise ValueError(f"racers= must be at least 2 for a race, not {racers!r}.")
    _require_commits()
    changes = None
    with ExitStack() as stack:
        count = effects
        if count is None:
            changes = stack.enter_context(watched(using))
            count = changes.calls
        trial = Trial(operation, count, timeout=timeout, using=using)
        trial.run(racers)
    problems = [*trial.problems(expected, changes)]
    if problems:
        error = next((reply.error for reply in trial.replies if reply.error is not None), None)
        raise AssertionError("\n".join(problems)) from error
    value: T = trial.replies[0].value
    return value


class Trial:
    """What an operation did when it was raced and called again."""

    def __init__(
        self, operation: Callable[[], Any], count: Callable[[], int], *, timeout: float, using: str
    ) -> None:
        self._operation = operation
        self._count = count
        self._timeout = timeout
        self._using = using
        self._before = count()
        self.replies: list[Reply] = []
        """Of all calls but those racers that were told to come again."""
        self.racers = 0
        self.in_race = 0
        self.later_calls = 0
        self.effects = 0

    def run(self, racers: int) -> None:
        self.racers = racers
        replies = self._race(racers)
        self.in_race = self._counted()
        self.replies = [reply for reply in replies if not _is_in_progress(reply)]
        # Those who have to come again, and one redelivery.
        self.later_calls = len(replies) - len(self.replies) + 1
        for _ in range(self.later_calls):
            self.replies += self._race(1)
            self.effects = self._counted()

    def problems(self, expected: int, changes: Changes | None) -> Iterator[str]:
        """Yield a sentence for each way in which it was not exactly once."""
        if self.effects != expected:
            later = self.effects - self.in_race
            yield (
                f"{self.effects} effects instead of {expected}: {self.in_race} when {self.racers} "
                f"raced, {later} in {self.later_calls} later calls."
            )
            if changes is not None:
                yield f"Changed rows: {str(changes) or 'none'}."
            if not self.effects:
                yield (
                    "A key that an earlier call has used up has no effect; and effects= has to "
                    "count what happens outside the database."
                )
        values = [reply.value for reply in self.replies if reply.error is None]
        if _differ(values):
            told = Counter(_told(value) for value in values)
            yield "Results differ: " + ", ".join(f"{n} x {text}" for text, n in told.items()) + "."
        errors = Counter(
            f"{type(reply.error).__name__}: {reply.error}".rstrip()
            for reply in self.replies
            if reply.error is not None
        )
        for text, times in errors.items():
            yield f"{times} of {len(self.replies)} calls raised {text}"

    def _race(self, racers: int) -> list[Reply]:
        return race(self._operation, racers, timeout=self._timeout, using=self._using)

    def _counted(self) -> int:
        return self._count() - self._before


def _require_commits() -> None:
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            raise ImproperlyUsed(
                f"assert_exactly_once() is inside a transaction on {connection.alias!r}, as "
                "Django's TestCase opens one: no racer would see what it writes. Use the fixture "
                "assert_exactly_once, @pytest.mark.django_db(transaction=True) or "
                "TransactionTestCase."
            )


def _is_in_progress(reply: Reply) -> bool:
    if isinstance(reply.value, HttpResponse):
        response = reply.value
        return (
            response.headers.get("Content-Type") == "application/problem+json"
            and json.loads(response.content).get("code") == IN_PROGRESS
        )
    return isinstance(reply.error, KeyInProgress)


def _differ(values: list[Any]) -> bool:
    return any(_typed(value) != _typed(values[0]) for value in values)


def _typed(value: Any) -> Any:
    """Return what is equal for values that are equal and of one type, all the way down."""
    inside: Any = value
    match value:
        case HttpResponseBase():
            # Of whatever class: a replay knows bytes only.
            return (HttpResponseBase, value.status_code, getattr(value, "content", None))
        case dict():
            inside = {_typed(key): _typed(item) for key, item in value.items()}
        case list() | tuple():
            inside = tuple(_typed(item) for item in value)
        case set() | frozenset():
            inside = frozenset(_typed(item) for item in value)
        case float() if math.isnan(value):
            inside = "nan"
        case _ if is_dataclass(value):
            inside = tuple(_typed(getattr(value, field.name)) for field in fields(value))
    return (type(value), inside)


def _told(value: Any) -> str:
    if isinstance(value, HttpResponseBase):
        return f"{value.status_code} {getattr(value, 'content', b'')!r}"
    return f"{value!r} ({type(value).__name__})"

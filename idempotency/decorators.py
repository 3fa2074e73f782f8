"""``@idempotent``: a function or Celery task that runs once per key."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from idempotency.calls import KeySource, Parameters, key_source
from idempotency.conf import conf, duration
from idempotency.digests import fingerprint
from idempotency.exceptions import IdempotencyError, ImproperlyUsed, KeyInProgress, KeyMissing

if TYPE_CHECKING:
    from celery import Task

    from idempotency.execution import OnCompleted, Operation
    from idempotency.querysets import IdempotencyKeyQuerySet
    from idempotency.stores import Store, Terms

P = ParamSpec("P")
R = TypeVar("R")

GUARD = "__idempotency_guard__"
LEASED_ONLY = ("lease", "on_failed", "on_stale", "max_attempts", "store")
CHOICES = {
    "mode": ("atomic", "leased"),
    "on_completed": ("replay", "execute", "raise"),
    "on_in_progress": ("retry", "raise"),
    "on_failed": ("execute", "raise"),
    "on_stale": ("reclaim", "block"),
    "store": ("postgresql", "redis"),
}
SHORTEST_LEASE = timedelta(milliseconds=300)
"""Three heartbeats of it still are no burden."""


@overload
def idempotent(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def idempotent(
    *,
    namespace: str | None = ...,
    key: str | Callable[..., Any] | None = ...,
    scope: str | Callable[..., Any] | None = ...,
    mode: Literal["atomic", "leased"] = ...,
    using: str | None = ...,
    ttl: float | timedelta | None = ...,
    lease: float | timedelta | None = ...,
    wait: float | timedelta | None = ...,
    on_completed: OnCompleted = ...,
    on_in_progress: Literal["retry", "raise"] = ...,
    on_failed: Literal["execute", "raise"] | None = ...,
    on_stale: Literal["reclaim", "block"] | None = ...,
    max_attempts: int | None = ...,
    store: Literal["postgresql", "redis"] | None = ...,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def idempotent(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Run a function once per key.

    In atomic mode its effects, key and result are one database transaction. In leased mode, for
    effects outside the database, a claim is committed before it runs and extended while it runs,
    and its result afterwards; ``step()``, ``fenced()`` and ``derived_key()`` belong inside.

    Goes directly on the function, under ``@shared_task`` and its like. A duplicate gets the stored
    result, equal in value and type, and runs nothing.

    ``namespace``
        What the key is a key of. By default the task's name, or the function's module and
        qualified name; give one explicitly, and keys survive a renaming. A lambda needs one.
    ``key``
        A format string over the arguments (``"charge:{order_id}"``), or a callable that takes
        those arguments that it names. By default a task's message id, which recognises deliveries
        of one message and nothing more. A task that is called directly, without ``key=``, is a
        plain call; another function without it raises ``KeyMissing``.
    ``scope``
        Whose key it is, given like ``key``: the same key in two scopes is two operations.
    ``mode``
        ``"atomic"`` or ``"leased"``.
    ``using``
        The database alias of the transaction; by default where the router writes
        ``IdempotencyKey``. Only effects on that alias belong to it.
    ``ttl``
        Seconds or timedelta for which duplicates are recognised; ``IDEMPOTENCY_TTL`` by default.
        A delivery that a relay published longer ago is refused with ``WindowExpired``, unless its
        key is still there: it fails, and is not executed.
    ``wait``
        Seconds or timedelta to wait for a twin that is executing; by default not at all.
    ``on_completed``
        ``"replay"`` returns the stored result, ``"execute"`` runs it again, ``"raise"`` raises
        ``KeyReused``.
    ``on_in_progress``
        When a twin is executing: ``"retry"`` has the worker deliver the task again in 1 to 5
        seconds, under the same id, at no cost to its ``max_retries``; ``"raise"``, and ``"retry"``
        outside a worker, raise ``KeyInProgress``.

    The rest is for leased mode:

    ``lease``
        Seconds or timedelta after which an owner that gives no sign of life has lost its claim;
        ``IDEMPOTENCY_LEASE`` by default. A heartbeat extends it.
    ``on_failed``
        What an exception of the function means: ``"execute"``: the next call runs it again;
        ``"raise"``: it has failed for good, and the next call raises ``StoredFailure``.
    ``on_stale``
        What a claim does that finds a stale lease: ``"reclaim"`` takes over and goes on after the
        recorded steps; ``"block"`` raises ``OutcomeUnknown`` until somebody calls ``resolve()``.
    ``max_attempts``
        After so many attempts that failed or never ended the operation has failed for good.
    ``store``
        Where leases are kept: ``"postgresql"``, or ``"redis"`` (``IDEMPOTENCY_REDIS_URL``) for
        work that has no effects in the database.

    A call raises ``KeyReused`` for a known key with other arguments (the fingerprint is all of
    them, with defaults, without ``self``), ``KeyInProgress``, ``WindowExpired``, ``KeyMissing`` for
    a key that comes out empty, ``ReentrantUse``, ``ImproperlyUsed`` for a result that cannot be
    stored, and what the function raises. In atomic mode nothing is written after an exception, and
    the next call runs it again. In leased mode it also raises ``StoredFailure``,
    ``OutcomeUnknown``, ``LeaseLost`` once another owner has taken over, and ``ImproperlyUsed``
    inside a transaction.

    Decorating raises ``TypeError`` for what cannot be guarded or asks for an unknown argument.
    """
    if function is None:
        return lambda function: _guarded(function, options)
    return _guarded(function, options)


def guard_of(target: object) -> Guard | None:
    """Return the guard of a task or function, or None."""
    target = getattr(target, "run", target)
    while target is not None:
        guard = getattr(target, GUARD, None)
        if isinstance(guard, Guard):
            return guard
        target = getattr(target, "__wrapped__", None)
    return None


class LeasedRules:
    """The rules of leased mode."""

    def __init__(
        self,
        *,
        lease: float | timedelta | None = None,
        on_failed: Literal["execute", "raise"] = "execute",
        on_stale: Literal["reclaim", "block"] = "reclaim",
        max_attempts: int | None = None,
        store: Literal["postgresql", "redis"] = "postgresql",
    ) -> None:
        if max_attempts is not None and max_attempts < 1:
            raise ValueError(f"max_attempts= must be at least 1, not {max_attempts!r}.")
        self._lease = None if lease is None else duration(lease, "lease", least=SHORTEST_LEASE)
        self._on_failed = on_failed
        self._on_stale = on_stale
        self._max_attempts = max_attempts
        self._store = store

    @property
    def is_in_redis(self) -> bool:
        """Whether leases are kept in Redis."""
        return self._store == "redis"

    def terms(self, on_completed: OnCompleted) -> Terms:
        """Return the terms of one call."""
        from idempotency.stores import UNLIMITED, Terms

        return Terms(
            lease=self._lease or conf.LEASE,
            on_completed=on_completed,
            on_failed=self._on_failed,
            on_stale=self._on_stale,
            max_attempts=self._max_attempts or UNLIMITED,
            releasing=_celery().CONTROL_FLOW if "celery" in sys.modules else (),
        )

    def store(self, records: IdempotencyKeyQuerySet) -> Store:
        """Return where leases are kept. Raises ``ImproperlyUsed`` where that is not installed."""
        if not self.is_in_redis:
            return records
        try:
            from idempotency.redis import RedisStore
        except ModuleNotFoundError as error:
            if error.name != "redis":
                raise
            raise ImproperlyUsed('store="redis" needs the package redis.') from error
        return RedisStore()


class Guard:
    """The rules under which one function runs once."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        namespace: str | None = None,
        key: str | Callable[..., Any] | None = None,
        scope: str | Callable[..., Any] | None = None,
        using: str | None = None,
        ttl: float | timedelta | None = None,
        wait: float | timedelta | None = None,
        on_completed: OnCompleted = "replay",
        on_in_progress: Literal["retry", "raise"] = "retry",
        leased: LeasedRules | None = None,
    ) -> None:
        self.function = function
        self.parameters = Parameters(function)
        self.namespace = namespace
        self._key = self._source(key, "key")
        self._scope = self._source(scope or None, "scope")
        self._using = using
        self._ttl = None if ttl is None else duration(ttl, "ttl")
        self._wait = timedelta(0) if wait is None else duration(wait, "wait", least=timedelta(0))
        self._on_completed = on_completed
        self._on_in_progress = on_in_progress
        self._leased = leased

    @property
    def using(self) -> str:
        """The database alias of the transaction in which the function runs."""
        from django.db import router

        from idempotency.models import IdempotencyKey

        return self._using or router.db_for_write(IdempotencyKey)

    @property
    def is_leased(self) -> bool:
        """Whether its mode is leased."""
        return self._leased is not None

    @property
    def is_in_redis(self) -> bool:
        """Whether its leases are kept in Redis."""
        return self._leased is not None and self._leased.is_in_redis

    @property
    def ttl(self) -> timedelta:
        """How long duplicates are recognised."""
        ttl: timedelta = self._ttl or conf.TTL
        return ttl

    @property
    def name(self) -> str:
        """The function's module and qualified name."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, once per key."""
        task = self._task()
        message_id = _celery().message_id(task) if task is not None else ""
        if self._key is None and not message_id:
            if task is None:
                raise KeyMissing(
                    f"{self.name} has no key: outside a Celery task nothing tells a duplicate. "
                    'Give it one: @idempotent(key="…{argument}…").'
                )
            return self.function(*args, **kwargs)
        using = self.using
        if message_id:
            _celery().drop_dead_connection(using)
        try:
            return self._run_once(task, message_id, using, args, kwargs)
        except KeyInProgress as error:
            if message_id and self._on_in_progress == "retry":
                _celery().retry_later(task, error)
            raise
        except IdempotencyError:
            if message_id:
                _celery().never_retry(task)
            raise

    def _run_once(
        self, task: Task[..., Any] | None, message_id: str, using: str, args: Any, kwargs: Any
    ) -> Any:
        from idempotency.execution import run_once
        from idempotency.leases import run_leased
        from idempotency.models import IdempotencyKey
        from idempotency.querysets import IdempotencyKeyQuerySet

        # objects.using() makes three of them.
        records = IdempotencyKeyQuerySet(IdempotencyKey, using=using)
        operation = self._operation(task, message_id, args, kwargs)
        body = functools.partial(self.function, *args, **kwargs)
        if self._leased is None:
            return run_once(records, operation, body, on_completed=self._on_completed).value
        terms = self._leased.terms(self._on_completed)
        return run_leased(self._leased.store(records), records, operation, body, terms).value

    def _operation(
        self, task: Task[..., Any] | None, message_id: str, args: Any, kwargs: Any
    ) -> Operation:
        from idempotency.execution import Operation

        arguments = self.parameters.bind(args, kwargs)
        key = message_id if self._key is None else self._key(arguments)
        scope = "" if self._scope is None else self._scope(arguments)
        if self._has_receiver(args):
            del arguments[self.parameters.first]
        return Operation(
            namespace=self.namespace or (task.name if task is not None else self.name),
            scope=scope,
            key=key,
            ttl=self.ttl,
            wait=self._wait,
            fingerprint=fingerprint(arguments),
            message_id=message_id,
            published_at=_celery().published_at(task) if message_id else None,
        )

    def _has_receiver(self, args: tuple[Any, ...]) -> bool:
        """Whether the first argument is what the function is bound to, and not of the call."""
        return self.parameters.has_receiver or (bool(args) and guard_of(args[0]) is self)

    def _task(self) -> Task[..., Any] | None:
        # Where Celery was never imported, nothing is a task.
        return _celery().task_of(self) if "celery" in sys.modules else None

    def _source(self, given: Any, option: str) -> KeySource | None:
        return None if given is None else key_source(given, self.parameters, option)


def _guarded(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    _require_guardable(function, options)
    guard = Guard(function, **_rules(options))

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return guard.call(args, kwargs)

    # Celery checks a call's arguments by this, and does not follow __wrapped__.
    guarded.__signature__ = guard.parameters.signature  # type: ignore[attr-defined]
    setattr(guarded, GUARD, guard)
    return guarded


def _require_guardable(function: Any, options: dict[str, Any]) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if isinstance(function, (staticmethod, classmethod)):
        raise TypeError(f"Put @idempotent under @{type(function).__name__}, on {name} itself.")
    if hasattr(function, "apply_async"):
        raise TypeError(f"Put @idempotent under the decorator that makes {name} a task.")
    if isinstance(function, type) or not hasattr(function, "__qualname__"):
        # A partial, or an instance that can be called, has no name to be a namespace.
        raise TypeError(f"@idempotent goes on a function, not on {function!r}.")
    if function.__name__ == "<lambda>" and not options.get("namespace"):
        raise TypeError(
            f"{name} has no name of its own: give it a namespace=, or it would take another "
            "lambda's results for its own."
        )
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{name} is async: a database transaction cannot be held across await. Guard a sync "
            "function and call it with sync_to_async."
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is a generator: it would run after its transaction is over.")


def _rules(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a guard; refuse what its mode does not have, by name."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, values in CHOICES.items():
        if name in given and given[name] not in values:
            raise TypeError(f"{name}= is one of {', '.join(values)}, not {given[name]!r}.")
    leased = {name: given.pop(name) for name in LEASED_ONLY if name in given}
    if given.pop("mode", "atomic") == "leased":
        return {**given, "leased": LeasedRules(**leased)}
    if leased:
        raise TypeError(f'{next(iter(leased))}= belongs to mode="leased"; this guard is atomic.')
    return given


def _celery() -> Any:
    from idempotency import celery

    return celery

"""Run once: the algorithm of atomic mode. No SQL, no HTTP, no Celery.

Lock, look, run, write, in one transaction: the effects of the body, its key and its result commit
together or not at all. A crash anywhere rolls everything back, so nothing is ever stuck.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from django.db import OperationalError, transaction

from idempotency import results, signals
from idempotency.digests import make_key
from idempotency.exceptions import (
    IdempotencyError,
    ImproperlyUsed,
    KeyInProgress,
    KeyReused,
    LeaseLost,
    OutcomeUnknown,
    ReentrantUse,
    StoredFailure,
    WindowExpired,
)
from idempotency.signals import executed, receipt, replayed

if TYPE_CHECKING:
    from django.dispatch import Signal

    from idempotency.models import IdempotencyKey
    from idempotency.querysets import IdempotencyKeyQuerySet

T = TypeVar("T")
Statement = tuple[str, Sequence[Any]]
"""SQL with ``%s``, and its parameters."""
OnCompleted = Literal["replay", "execute", "raise"]

KEY_LENGTH = 255
# serialization_failure, deadlock_detected, lock_not_available: another transaction was first.
LOST_RACE = frozenset({"40001", "40P01", "55P03"})

SIGNALS = {
    KeyInProgress: signals.in_progress,
    KeyReused: signals.mismatch,
    LeaseLost: signals.fenced_out,
    OutcomeUnknown: signals.unknown,
    WindowExpired: signals.window_expired,
}

logger = logging.getLogger(__name__)

_executing: ContextVar[frozenset[tuple[str, str, str, str]]] = ContextVar(
    "idempotency_executing", default=frozenset()
)


@dataclass(frozen=True, slots=True)
class Operation:
    """What shall run once: its identity, and how long it is waited for and remembered."""

    namespace: str
    scope: str
    key: str
    ttl: timedelta
    wait: timedelta = timedelta(0)
    fingerprint: str = ""
    message_id: str = ""
    published_at: datetime | None = None
    """When the delivery was last published, by the database's clock; None: nobody has told."""

    def __post_init__(self) -> None:
        if not self.namespace:
            raise ImproperlyUsed("A key has no namespace to be a key of.")
        for name in ("namespace", "scope", "key"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ImproperlyUsed(f"The {name} of an operation must be text, not {value!r}.")
            if len(value) > KEY_LENGTH or not value.isprintable():
                raise ImproperlyUsed(
                    f"The {name} of an operation must be printable text of at most {KEY_LENGTH} "
                    f"characters, and has {len(value)} (namespace {self.namespace[:40]!r}). "
                    "make_key() turns longer ones into a digest."
                )

    def __str__(self) -> str:
        """Names it in errors; Celery logs those."""
        return self.digest

    @property
    def digest(self) -> str:
        """Names it in logs, where the key itself may not be."""
        return f"{self.namespace} {make_key(self.namespace, self.key, scope=self.scope)[:17]}"


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What came of an operation. ``replayed``: it had run before, and ``value`` is what it gave."""

    value: T
    replayed: bool


class Codec(Protocol[T]):
    """How a kind of result becomes bytes and comes back; ``results`` is one.

    ``loads`` raises ``ResultUnavailable`` for what another codec has written.
    """

    def dumps(self, value: T, /) -> bytes: ...

    def loads(self, stored: bytes, /) -> T: ...


def run_once(
    records: IdempotencyKeyQuerySet,
    operation: Operation,
    body: Callable[[], T],
    *,
    on_completed: OnCompleted = "replay",
    codec: Codec[T] = results,
) -> Outcome[T]:
    """Run ``body`` unless the operation has run before; then return what it gave.

    Raises ``KeyInProgress`` while another transaction executes the key, ``KeyReused`` for the same
    key with another fingerprint, ``ReentrantUse`` if the body calls its own operation, and
    whatever the body raises, after the rollback.
    """
    with telling(records, operation):
        return _run_once(records, operation, body, on_completed, codec)


def _run_once(
    records: IdempotencyKeyQuerySet,
    operation: Operation,
    body: Callable[[], T],
    on_completed: OnCompleted,
    codec: Codec[T],
) -> Outcome[T]:
    in_body = False
    try:
        with transaction.atomic(using=records.db), not_reentrant(records.db, operation):
            claim = records.claim(operation)
            if not claim.held and may_execute(claim.known, on_completed):
                claim = records.wait(operation)
            if claim.known is not None and is_completed(operation, claim.known):
                if on_completed == "replay":
                    return replay(records, operation, claim.known, codec)
                if on_completed == "raise":
                    raise KeyReused(f"{operation} has been executed before.")
            require_in_window(operation, claim.began_at)
            in_body = True
            value = body()
            in_body = False
            result = codec.dumps(value)
            heard = executed.has_listeners(records.model)
            pk = records.complete(
                operation, claim, result, receipts(records, operation), last=not heard
            )
            if heard:
                tell(executed, records, operation, records.completed(operation, pk, result))
            return Outcome(value, replayed=False)
    except OperationalError as error:
        if in_body or getattr(error.__cause__, "sqlstate", None) not in LOST_RACE:
            raise
        raise KeyInProgress(
            f"{operation} met another transaction and is rolled back: try again later."
        ) from error


def may_execute(known: IdempotencyKey | None, on_completed: OnCompleted) -> bool:
    """Return whether the body may run after what was found; then not without the lock."""
    if known is None or on_completed == "execute":
        return True
    # What leased mode left behind, under a guard that is atomic since.
    return known.state == type(known).State.FAILED_RETRYABLE


def is_completed(operation: Operation, found: IdempotencyKey) -> bool:
    """Return whether the found row makes the operation a duplicate, or may be executed again.

    Raises ``KeyReused`` for another fingerprint (first, because no waiting can help),
    ``KeyInProgress`` for leased work, ``StoredFailure`` and ``OutcomeUnknown``.
    """
    require_same_fingerprint(operation, found)
    states = type(found).State
    if found.state == states.IN_PROGRESS:
        raise KeyInProgress(f"{operation} is being executed by {found.owner}: try again later.")
    if found.state == states.FAILED_TERMINAL:
        raise StoredFailure(
            f"{operation} failed for good at {found.finished_at} with {found.error}. A new intent "
            "needs a new key; release() lets this one run again."
        )
    if found.state == states.OUTCOME_UNKNOWN:
        raise OutcomeUnknown(
            f"{operation} may or may not have taken effect before {found.finished_at} "
            f"({found.error}). Find out, then say so with resolve()."
        )
    return found.state == states.COMPLETED


def replay(
    records: IdempotencyKeyQuerySet, operation: Operation, found: IdempotencyKey, codec: Codec[T]
) -> Outcome[T]:
    value = codec.loads(bytes(found.result or b""))
    records.write(receipts(records, operation))
    tell(replayed, records, operation, found)
    return Outcome(value, replayed=True)


def require_same_fingerprint(operation: Operation, found: IdempotencyKey) -> None:
    """An empty fingerprint, on either side, was never taken and says nothing."""
    if operation.fingerprint and found.fingerprint not in ("", operation.fingerprint):
        raise KeyReused(
            f"{operation} was first used with other arguments, at {found.created_at}. A new intent "
            "needs a new key."
        )


def require_in_window(operation: Operation, now: datetime) -> None:
    """Raise ``WindowExpired`` for a delivery whose duplicates may be forgotten by now.

    A key is kept for ``ttl`` after its execution, and no publish comes after that.
    """
    if operation.published_at is None or now - operation.published_at <= operation.ttl:
        return
    raise WindowExpired(
        f"{operation} was last published at {operation.published_at.isoformat()}, which is "
        f"{now - operation.published_at} ago: longer than the window of {operation.ttl} in which "
        "its duplicates are recognised, so it was not executed. Find out whether it has taken "
        "effect; if it has not, enqueue it anew, or publish it again by a retry in the outbox."
    )


def receipts(records: IdempotencyKeyQuerySet, operation: Operation) -> list[Statement]:
    """Return what others want written in the transaction that finishes the operation."""
    answers: list[tuple[Any, Any]] = receipt.send(
        sender=records.model, message_id=operation.message_id, using=records.db
    )
    return [statement for _, statements in answers for statement in statements or ()]


def tell(
    signal: Signal, records: IdempotencyKeyQuerySet, operation: Operation, record: IdempotencyKey
) -> None:
    signal.send(
        sender=records.model, record=record, message_id=operation.message_id, using=records.db
    )


def count(signal: Signal, records: IdempotencyKeyQuerySet, operation: Operation) -> None:
    """Send a signal that is for counting."""
    signal.send_robust(
        sender=records.model,
        operation=operation,
        message_id=operation.message_id,
        using=records.db,
    )


@contextmanager
def telling(records: IdempotencyKeyQuerySet, operation: Operation) -> Iterator[None]:
    """Log and count what the operation ends with, if it is ours; guards may be nested."""
    try:
        yield
    except IdempotencyError as error:
        signal = SIGNALS.get(type(error))
        if signal is not None and not error.counted:
            error.counted = True
            logger.info("%s ends with %s.", operation.digest, type(error).__name__)
            count(signal, records, operation)
        raise


@contextmanager
def not_reentrant(using: str, operation: Operation) -> Iterator[None]:
    """The advisory lock would let its own transaction in a second time."""
    entry = (using, operation.namespace, operation.scope, operation.key)
    entered = _executing.get()
    if entry in entered:
        raise ReentrantUse(
            f"{operation} calls itself before it is finished: the inner call needs another key."
        )
    token = _executing.set(entered | {entry})
    try:
        yield
    finally:
        _executing.reset(token)

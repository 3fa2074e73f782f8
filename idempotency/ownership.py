"""One owner's hold on an operation: its token, its heartbeat, and what it writes under both.

Everything is fenced by the token: once another owner has taken over, each write changes nothing
and raises ``LeaseLost``.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast
from uuid import uuid4

from django.db import connections, transaction

from idempotency import results
from idempotency.exceptions import (
    ImproperlyUsed,
    KeyInProgress,
    LeaseLost,
    StoreUnavailable,
)
from idempotency.execution import LOST_RACE, count, receipts, tell
from idempotency.signals import executed, reclaimed
from idempotency.stores import describe

if TYPE_CHECKING:
    from idempotency.execution import Operation
    from idempotency.models import IdempotencyKey
    from idempotency.querysets import IdempotencyKeyQuerySet
    from idempotency.stores import Found, Store, Terms

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 5
"""How often a change is tried against others, or a broken connection."""
BEATS = 3
"""Heartbeats in the time of a lease."""

current: ContextVar[Lease | None] = ContextVar("idempotency_lease", default=None)


class Lease:
    """One owner's hold; nothing before ``take()``."""

    def __init__(
        self, store: Store, records: IdempotencyKeyQuerySet, operation: Operation, terms: Terms
    ) -> None:
        self.store = store
        self.records = records
        self.operation = operation
        self.terms = terms
        self.states = records.model.State
        # Never the message's id: a retry and a redelivery have the same.
        self.token = uuid4()
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{operation.message_id}"[:255]
        self.lost = False
        self._failure = self.states.FAILED_RETRYABLE
        self._steps: dict[str, bytes] | None = None
        self._fencing = False
        self._settled = False
        self._extended_at = 0.0

    def take(self) -> bool:
        """Claim the operation, if that can be had."""
        self._extended_at = time.monotonic()
        taken = self.store.claim_lease(self.operation, self.terms, self.token, self.owner)
        if taken is None:
            return False
        self._begin(taken.attempt, taken.checkpoint)
        if taken.reclaimed:
            logger.warning("%s is reclaimed: its lease was stale.", self.operation.digest)
            count(reclaimed, self.records, self.operation)
        return True

    def recognise(self, found: Found) -> bool:
        """Whether an earlier try took the key, and only its answer was lost."""
        if found.record.token != self.token:
            return False
        self._begin(found.record.attempt, found.record.checkpoint)
        return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the lease alive; record how the attempt ended, unless it was completed."""
        token = current.set(self)
        try:
            with self._heartbeat():
                yield
        except BaseException as error:
            self._end(error)
            raise
        finally:
            current.reset(token)

    def complete(self, value: object) -> None:
        """Write the completion, and what the receivers of ``executed`` write, in a transaction.

        If its commit fails nobody knows whether it took place: the key is read again.
        """
        result = self._encode(value, "The operation")
        for tries in range(1, TRIES + 1):
            try:
                with transaction.atomic(using=self.records.db):
                    record = self._completed(result)
                    self.records.write(receipts(self.records, self.operation))
                    tell(executed, self.records, self.operation, record)
            except self.store.unreachable as error:
                # Whoever comes next finds out; as a failure it would run again.
                self._settled = tries == TRIES
                self.recover(error, last=self._settled)
            else:
                self._settled = True
                return

    def step(self, name: str, func: Callable[[], T]) -> T:
        if not self._fencing:
            require_no_transaction(self.records.db, f"step({name!r}) records its own progress")
        if name in self._recorded():
            return cast(T, results.loads(self._recorded()[name]))
        self._require_held()
        value = func()
        self._steps = {**self._recorded(), name: self._encode(value, f"Its step {name!r}")}
        if not self._fencing:
            self._extend()
        return value

    @contextmanager
    def fenced(self, using: str | None) -> Iterator[None]:
        if not self.store.in_database:
            raise ImproperlyUsed(
                f"{self.operation} keeps its lease outside the database, so no transaction can "
                'check it as it commits. fenced() needs store="postgresql".'
            )
        self._require_held()
        steps, outer = self._steps, self._fencing
        self._fencing = True
        try:
            with ExitStack() as stack:
                # The keys' transaction ends last: until then its row lock keeps others out.
                for alias in dict.fromkeys([self.records.db, using or self.records.db]):
                    stack.enter_context(transaction.atomic(using=alias))
                yield
                self._write_extension()
        except BaseException:
            # Rolled back, or not: the next step reads what is recorded. What a block around this
            # one has done is not, until that ends.
            self._steps = steps if outer else None
            raise
        else:
            if not outer and connections[self.records.db].in_atomic_block:
                self._steps = None  # the transaction around it may still be rolled back
        finally:
            self._fencing = outer

    def recover(self, error: Exception, *, last: bool) -> None:
        """Get ready for another try, or raise what ends them."""
        self.store.recover()
        if not last:
            return
        if self._settled or getattr(error.__cause__, "sqlstate", None) in LOST_RACE:
            raise KeyInProgress(
                f"The store did not say what became of {self.operation}: try again later.",
                retry_after=self.terms.lease.total_seconds(),
            ) from error
        if not self.store.in_database:
            raise StoreUnavailable(
                f"The store of the lease of {self.operation} cannot be used "
                f"({describe(error)}): try again later.",
                retry_after=self.terms.lease.total_seconds(),
            ) from error
        raise error

    def beat(self) -> None:
        """Extend the lease, from the heartbeat's thread."""
        try:
            held = self.store.extend(self.operation, self.token, self.terms.lease)
        except self.store.unreachable:
            self.store.recover()
            if self._since_extended() > self.terms.lease:
                self.lost = True
            return
        if held:
            self._extended_at = time.monotonic()
        else:
            self.lost = True

    def _begin(self, attempt: int, checkpoint: bytes | memoryview | None) -> None:
        self._steps = _decode(checkpoint)
        if self.terms.on_failed == "raise" or attempt >= self.terms.max_attempts:
            self._failure = self.states.FAILED_TERMINAL

    def _completed(self, result: bytes) -> IdempotencyKey:
        record = self.store.settle(self.operation, self.token, self.states.COMPLETED, result=result)
        if record is not None:
            return record
        found = self.store.look_up(self.operation)
        if found is None or found.record.token != self.token:
            raise self._lease_lost()
        if found.record.state != self.states.COMPLETED:
            raise self._lease_lost()
        return found.record

    def _encode(self, value: object, what: str) -> bytes:
        """Return the bytes of a result; where there are none its effect took place all the same."""
        try:
            return results.dumps(value)
        except ImproperlyUsed as error:
            self._failure = self.states.OUTCOME_UNKNOWN
            error.add_note(f"{what} has run, so {self.operation} has to be resolved by hand.")
            raise

    def _end(self, error: BaseException) -> None:
        """Record how the attempt ended; never at the cost of the error itself."""
        if self._settled or isinstance(error, LeaseLost):
            return
        try:
            if isinstance(error, (KeyInProgress, *self.terms.releasing)) or not isinstance(
                error, Exception
            ):
                held = self.store.let_go(self.operation, self.token)
            else:
                settled = self.store.settle(
                    self.operation, self.token, self._failure, error=describe(error)
                )
                held = settled is not None
            if not held:
                error.add_note(str(self._lease_lost()))
        except Exception as problem:
            logger.exception("Could not record how %s ended.", self.operation.digest)
            error.add_note(f"It could not be recorded: {describe(problem)}")

    def _recorded(self) -> dict[str, bytes]:
        if self._steps is None:
            found = self.store.look_up(self.operation)
            if found is None or found.record.token != self.token:
                raise self._lease_lost()
            self._steps = _decode(found.record.checkpoint)
        return self._steps

    def _require_held(self) -> None:
        """Without a look at the store, unless the heartbeat has failed or stood still."""
        if self.lost:
            raise self._lease_lost()
        if self._since_extended() > self.terms.lease / 2:
            self._extend()

    def _extend(self) -> None:
        """Extend the lease and record the steps: the same twice, so a broken try is repeated."""
        for tries in range(1, TRIES + 1):
            try:
                self._write_extension()
            except self.store.unreachable as error:
                if self._fencing:
                    raise
                self.recover(error, last=tries == TRIES)
            else:
                return

    def _write_extension(self) -> None:
        checkpoint = results.dumps(self._steps) if self._steps else None
        began = time.monotonic()
        if not self.store.extend(self.operation, self.token, self.terms.lease, checkpoint):
            raise self._lease_lost()
        self._extended_at = began

    def _since_extended(self) -> timedelta:
        return timedelta(seconds=time.monotonic() - self._extended_at)

    def _lease_lost(self) -> LeaseLost:
        self.lost = True
        return LeaseLost(f"{self.operation} has been taken over, or settled by hand, meanwhile.")

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        if self.store.in_database and connections[self.records.db].in_atomic_block:
            # A test's transaction: no other connection sees the lease, to extend or to take it.
            yield
            return
        stop = threading.Event()
        thread = threading.Thread(target=self._beat_until, args=[stop], daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _beat_until(self, stop: threading.Event) -> None:
        try:
            while not stop.wait(self.terms.lease.total_seconds() / BEATS) and not self.lost:
                self.beat()
        finally:
            connections.close_all()


def _decode(checkpoint: bytes | memoryview | None) -> dict[str, bytes]:
    return {} if checkpoint is None else cast("dict[str, bytes]", results.loads(bytes(checkpoint)))


def require_no_transaction(using: str, what: str) -> None:
    """What is written inside a transaction is not there for others, and may be undone."""
    connection = connections[using]
    if connection.in_atomic_block:
        try:
            # It looks past the transaction that Django's TestCase puts around a test.
            with transaction.atomic(using=using, durable=True):
                return
        except RuntimeError:
            pass
    elif connection.get_autocommit():
        return
    raise ImproperlyUsed(
        f"{what}, which cannot be inside an open transaction on {using!r}: call it after the "
        "commit (transaction.on_commit()), or enqueue it."
    )

"""Guards that are switched off, for tests that are about something else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast
from unittest.mock import patch
from uuid import UUID, uuid4

from django.db import router, transaction
from django.http.response import HttpResponseBase
from django.test.utils import TestContextDecorator

from idempotency.conf import conf
from idempotency.decorators import Guard
from idempotency.execution import Operation, Outcome
from idempotency.http import ViewGuard
from idempotency.models import IdempotencyKey
from idempotency.ownership import Lease, current
from idempotency.querysets import IdempotencyKeyManager
from idempotency.stores import Found, Taken, Terms

if TYPE_CHECKING:
    from idempotency.stores import Store

T = TypeVar("T")


def override_idempotency(*, enabled: bool) -> TestContextDecorator:
    """Switch every guard off, as a context manager or decorator, for tests of what is guarded.

    It decorates tests, sync and async, and ``TestCase`` classes (from ``setUp()`` on).

    With ``enabled=False`` nothing is recognised as a duplicate, replayed or refused: a function or
    task runs each time it is called, a view answers without an ``Idempotency-Key``, and neither
    keys nor receipts are written. Transactions stay: the body of a guard is one, a view's response
    that is not final rolls it back, and inside leased work ``step()``, ``fenced()`` and
    ``derived_key()`` (another key for each call) work.

    It holds for all threads of this process until the block ends; blocks may be nested, and
    ``enabled=True`` guards again inside.
    """
    return _Override(GUARDED if enabled else UNGUARDED)


class _Override(TestContextDecorator):
    def __init__(self, replaced: dict[tuple[type, str], Any]) -> None:
        super().__init__()
        self._replaced = replaced
        self._entered: list[ExitStack] = []

    def enable(self) -> None:
        with ExitStack() as stack:
            for (owner, name), function in self._replaced.items():
                stack.enter_context(patch.object(owner, name, function))
            self._entered.append(stack.pop_all())

    def disable(self) -> None:
        self._entered.pop().close()


def _call(guard: Guard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not guard.is_leased:
        with transaction.atomic(using=guard.using):
            return guard.function(*args, **kwargs)
    token = current.set(_lease(guard))
    try:
        return guard.function(*args, **kwargs)
    finally:
        current.reset(token)


def _answer(guard: ViewGuard, request: Any, view: Any, call: Callable[[], Any]) -> Any:
    with transaction.atomic(using=guard.using):
        response = call()
        # What is no response Django complains of.
        if isinstance(response, HttpResponseBase) and not guard.is_final(response):
            transaction.set_rollback(True, using=guard.using)
        return response


def _run_once(
    manager: IdempotencyKeyManager,
    key: object,
    func: Callable[[], T],
    *,
    using: str | None = None,
    **options: Any,
) -> Outcome[T]:
    with transaction.atomic(using=using or router.db_for_write(manager.model)):
        return Outcome(func(), replayed=False)


GUARDED: dict[tuple[type, str], Any] = {
    (Guard, "call"): Guard.call,
    (ViewGuard, "answer"): ViewGuard.answer,
    (IdempotencyKeyManager, "run_once"): IdempotencyKeyManager.run_once,
}
UNGUARDED: dict[tuple[type, str], Any] = {
    (Guard, "call"): _call,
    (ViewGuard, "answer"): _answer,
    (IdempotencyKeyManager, "run_once"): _run_once,
}


def _lease(guard: Guard) -> Lease:
    operation = Operation(namespace=guard.name, scope="", key=str(uuid4()), ttl=conf.TTL)
    records = IdempotencyKey.objects.using(guard.using)
    lease = Lease(cast("Store", Nowhere()), records, operation, Terms(lease=conf.LEASE))
    lease.take()
    return lease


class Nowhere:
    """A store for a lease that is always held, and forgotten with it."""

    unreachable: ClassVar[tuple[type[Exception], ...]] = ()
    in_database: ClassVar[bool] = True

    def __init__(self) -> None:
        self._record = IdempotencyKey()

    def claim_lease(self, operation: Operation, terms: Terms, token: UUID, owner: str) -> Taken:
        self._record.token = token
        return Taken(attempt=1, checkpoint=None, reclaimed=False)

    def extend(
        self, operation: Operation, token: UUID, lease: timedelta, checkpoint: bytes | None = None
    ) -> bool:
        self._record.checkpoint = checkpoint or self._record.checkpoint
        return True

    def look_up(self, operation: Operation) -> Found | None:
        return Found(self._record, timedelta(0))

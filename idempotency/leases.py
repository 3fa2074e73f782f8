"""Leased work: the algorithm for effects outside the database. No SQL, no Celery.

Claim and commit, run, complete: three moments instead of one transaction. The claim is a lease,
which a heartbeat extends. Whoever finds it stale takes over with a new token, and from then on each
write of the old owner fails (``LeaseLost``). What has been recorded as a step is not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from django.db import transaction

from idempotency import results
from idempotency.digests import make_key
from idempotency.exceptions import ImproperlyUsed, KeyInProgress, KeyReused
from idempotency.execution import (
    Outcome,
    is_completed,
    not_reentrant,
    replay,
    require_in_window,
    require_same_fingerprint,
    telling,
)
from idempotency.ownership import TRIES, Lease, current, require_no_transaction

if TYPE_CHECKING:
    from idempotency.execution import Operation
    from idempotency.models import IdempotencyKey
    from idempotency.querysets import IdempotencyKeyQuerySet
    from idempotency.stores import Found, Store, Terms

P = ParamSpec("P")
T = TypeVar("T")

POLL = 0.1
"""Seconds between two looks at a twin that is waited for."""


def run_leased(
    store: Store,
    records: IdempotencyKeyQuerySet,
    operation: Operation,
    body: Callable[[], T],
    terms: Terms,
) -> Outcome[T]:
    """Run ``body`` under a lease unless the operation has run before; then return what it gave.

    ``records`` is where the signals' receivers write. Raises ``KeyInProgress`` while another
    owner's lease lives, ``StoreUnavailable`` where the store is another server, ``KeyReused``,
    ``StoredFailure``, ``OutcomeUnknown``, ``WindowExpired``, ``LeaseLost`` once another owner has
    taken over, ``ImproperlyUsed`` inside a transaction on the records' alias, and whatever the body
    raises.
    """
    require_no_transaction(records.db, f"{operation} is leased work")
    with telling(records, operation), not_reentrant(records.db, operation):
        lease = Lease(store, records, operation, terms)
        completed = claim(lease)
        if completed is not None:
            with transaction.atomic(using=records.db):
                return replay(records, operation, completed, results)
        with lease.held():
            value = body()
            lease.complete(value)
        return Outcome(value, replayed=False)


def claim(lease: Lease) -> IdempotencyKey | None:
    """Commit a claim, or return the record of the execution that makes it a duplicate."""
    store, operation, states = lease.store, lease.operation, lease.states
    deadline = time.monotonic() + operation.wait.total_seconds()
    tries = 0
    while (tries := tries + 1) <= TRIES:
        try:
            if lease.take():
                return None
            found = store.look_up(operation)
            if found is None:
                continue  # forgotten, or expired, between the two
            if lease.recognise(found):
                return None
            require_same_fingerprint(operation, found.record)
            if found.record.state != states.IN_PROGRESS:
                if _is_duplicate(lease, found.record):
                    return found.record
            elif found.remaining <= timedelta(0):
                _give_up(lease, found.record)
            else:
                _wait(operation, found, deadline)
                tries = 0
        except store.unreachable as error:
            lease.recover(error, last=tries == TRIES)
    # No claim takes a key for a delivery that is too late, whatever state the key is in.
    require_in_window(operation, store.clock())
    raise KeyInProgress(f"{operation} is claimed by many at once: try again later.")


def step(name: str, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Inside leased work: call ``func`` and record its result under ``name``, once per key.

    Where this or an earlier attempt has recorded it, ``func`` is not called and its result is
    returned. No transaction is open while ``func`` runs; inside ``fenced()`` the step commits with
    that transaction. A crash can still come between the effect of ``func`` and its record: hand
    ``derived_key(name)`` to a provider that knows such keys.

    Raises ``LeaseLost`` once another owner has taken over, ``ImproperlyUsed`` outside leased work
    and for a result that cannot be stored, and what ``func`` raises, after which nothing is
    recorded.
    """
    return _lease("step()").step(name, lambda: func(*args, **kwargs))


@contextmanager
def fenced(using: str | None = None) -> Iterator[None]:
    """Inside leased work: a transaction whose last statement checks that the lease is still held.

    ``using``: its database alias, by default that of the keys. Raises ``LeaseLost``, and rolls
    back, once another owner has taken over; ``ImproperlyUsed`` outside leased work and where
    leases are not kept in the database.

    If a crash follows, the next attempt does it again, unless it was in a ``step()`` inside the
    block.
    """
    with _lease("fenced()").fenced(using):
        yield


def derived_key(name: str) -> str:
    """Inside leased work: a key for a provider, the same in each attempt, another for each name.

    Raises ``ImproperlyUsed`` outside leased work.
    """
    operation = _lease("derived_key()").operation
    return make_key(operation.namespace, operation.key, name, scope=operation.scope)


def _is_duplicate(lease: Lease, record: IdempotencyKey) -> bool:
    if not is_completed(lease.operation, record) or lease.terms.on_completed == "execute":
        return False
    if lease.terms.on_completed == "raise":
        raise KeyReused(f"{lease.operation} has been executed before.")
    return True


def _give_up(lease: Lease, record: IdempotencyKey) -> None:
    """End a stale attempt that the terms do not let us take over."""
    if lease.terms.on_stale == "block":
        state = lease.states.OUTCOME_UNKNOWN
    elif record.attempt >= lease.terms.max_attempts:
        state = lease.states.FAILED_TERMINAL
    else:
        return  # stale since a moment ago: the next try takes it
    error = f"The lease of {record.owner} ended in attempt {record.attempt}."
    token = record.token or lease.token
    lease.store.settle(lease.operation, token, state, error=error, only_stale=True)


def _wait(operation: Operation, found: Found, deadline: float) -> None:
    left = deadline - time.monotonic()
    remaining = found.remaining.total_seconds()
    if left <= 0:
        raise KeyInProgress(
            f"{operation} is being executed by {found.record.owner}: try again later.",
            retry_after=remaining,
        )
    time.sleep(min(POLL, left, remaining))


def _lease(what: str) -> Lease:
    lease = current.get()
    if lease is None:
        raise ImproperlyUsed(f'{what} belongs inside a function under @idempotent(mode="leased").')
    return lease

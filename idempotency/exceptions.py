"""What idempotency raises. Each message says what happened, to which key, and what to do."""

from __future__ import annotations


class IdempotencyError(Exception):
    """Base of the exceptions of this app."""

    counted = False
    """Whether the signal for it has been sent."""


class KeyMissing(IdempotencyError):
    """The operation has no key: none was given, or what was given came out empty."""


class KeyInProgress(IdempotencyError):
    """The same key is being executed elsewhere, or was a moment ago: call again later.

    ``retry_after`` is in seconds. After a serialization failure the body may have run; it was
    rolled back.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreUnavailable(KeyInProgress):
    """The Redis server where leases are kept does not answer, or takes no writes: call again later.

    Nothing is executed without a lease. If it went away later, what the body has done and not
    recorded as a step is done again.
    """


class KeyReused(IdempotencyError):
    """The key belongs to a finished operation whose result this call may not have.

    Its arguments were others, or the guard says ``on_completed="raise"``. Retrying cannot help.
    """


class LeaseLost(IdempotencyError):
    """Another owner has taken over; what this one wrote is rolled back."""


class OutcomeUnknown(IdempotencyError):
    """An earlier attempt ended without saying whether its effect took place."""


class StoredFailure(IdempotencyError):
    """The operation has failed for good before, and the key remembers it."""


class ResultUnavailable(IdempotencyError):
    """The operation has run, but its result cannot be given back."""


class WindowExpired(IdempotencyError):
    """The delivery is older than the time in which its duplicates are recognised.

    Nobody knows any more whether another delivery was executed, so this one was not. Its age counts
    from its last publish by a relay. Retrying it as it is cannot help.
    """


class ImproperlyUsed(IdempotencyError):
    """The program uses this app in a way that cannot work; the text says what to change."""


class ReentrantUse(ImproperlyUsed):
    """An operation calls itself, with its own key, before it is finished."""

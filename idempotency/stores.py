"""What leased work needs of the place where its leases are kept; no place in particular."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol
from uuid import UUID

if TYPE_CHECKING:
    from idempotency.execution import OnCompleted, Operation
    from idempotency.models import IdempotencyKey

UNLIMITED = 2**31 - 1
LARGEST_ERROR = 1024
"""Bytes of an error that are stored."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Under what terms an operation is leased."""

    lease: timedelta
    on_completed: OnCompleted = "replay"
    on_failed: Literal["execute", "raise"] = "execute"
    on_stale: Literal["reclaim", "block"] = "reclaim"
    max_attempts: int = UNLIMITED
    releasing: tuple[type[BaseException], ...] = ()
    """Exceptions that are no failure, such as Celery's Retry."""


class Taken(NamedTuple):
    """A claim that was won."""

    attempt: int
    checkpoint: bytes | None
    reclaimed: bool
    """From an owner whose lease was stale."""


class Found(NamedTuple):
    """What a store has under a key that has not expired."""

    record: IdempotencyKey
    remaining: timedelta
    """Of its lease; zero or less for a stale one."""


class Store(Protocol):
    """Keeps leases. Each change is atomic, by the store's own clock.

    ``extend``, ``settle`` and ``let_go`` change a record that is in progress under that very
    token, whether its lease is stale or not, and otherwise nothing.
    """

    @property
    def unreachable(self) -> tuple[type[Exception], ...]:
        """Exceptions after which it is not known whether a change was made."""

    @property
    def in_database(self) -> bool:
        """Whether its changes belong to the transaction on the records' alias."""

    def claim_lease(
        self, operation: Operation, terms: Terms, token: UUID, owner: str
    ) -> Taken | None:
        """Take a key that is absent, expired, failed or stale, as far as the terms allow.

        Nothing is taken for a delivery that was published longer than a ttl ago.
        """

    def clock(self) -> datetime:
        """Return the store's time."""

    def look_up(self, operation: Operation) -> Found | None:
        """Return the record, unless it has expired."""

    def extend(
        self, operation: Operation, token: UUID, lease: timedelta, checkpoint: bytes | None = None
    ) -> bool:
        """Have the lease last so long from now, and record the steps if there are."""

    def settle(
        self,
        operation: Operation,
        token: UUID,
        state: str,
        *,
        result: bytes | None = None,
        error: str = "",
        only_stale: bool = False,
    ) -> IdempotencyKey | None:
        """End the attempt in a state; return the record."""

    def let_go(self, operation: Operation, token: UUID) -> bool:
        """End the attempt as if it had not been; its steps stay."""

    def recover(self) -> None:
        """Get ready for another try after ``unreachable``."""


def describe(error: BaseException) -> str:
    """Return what is stored of an error: its class and its message's first line, at most 1 KiB.

    The lines after it are where PostgreSQL quotes the values of a row.
    """
    line = next(iter(str(error).splitlines()), "")
    text = f"{type(error).__module__}.{type(error).__qualname__}: {line}".replace("\x00", "")
    return text.encode(errors="replace")[:LARGEST_ERROR].decode(errors="ignore")

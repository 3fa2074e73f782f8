"""Resolve and release by hand: what moved is in the admin's log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.db import router, transaction
from django.utils.translation import gettext_lazy

from idempotency.exceptions import StoredFailure
from idempotency.leased_querysets import LeasedQuerySet
from idempotency.models import IdempotencyKey

if TYPE_CHECKING:
    from django.db.models import QuerySet

    StrPromise = Any

MOST = 10_000
"""Keys that one move takes at once: each of them gets its line in the log."""


@dataclass(frozen=True, slots=True)
class Move:
    """A change of state that a person may ask for, and what the log says of it."""

    movable: Callable[[LeasedQuerySet], LeasedQuerySet]
    apply: Callable[[LeasedQuerySet], int]
    logged: StrPromise

    def make(self, chosen: QuerySet[IdempotencyKey], user_id: Any) -> tuple[int, int]:
        """Move what can be moved of the first ``MOST`` keys chosen, and log it for the user.

        Both in one transaction. Returns how many moved and how many did not: they were in another
        state, or somebody holds them at this moment.
        """
        ids = list(chosen.values_list("pk", flat=True)[:MOST])
        alias = router.db_for_write(IdempotencyKey)
        rows = IdempotencyKey.objects.using(alias)
        with transaction.atomic(using=alias):
            free = self.movable(rows.filter(pk__in=ids)).select_for_update(skip_locked=True)
            # Locked before it moves: the log then tells of these rows, and of no other.
            locked = list(free.defer("result", "checkpoint").order_by("state", "pk"))
            count = self.apply(rows.filter(pk__in=[key.pk for key in locked]))
            for state, group in groupby(locked, key=attrgetter("state")):
                LogEntry.objects.log_actions(
                    user_id=user_id,
                    queryset=list(group),
                    action_flag=CHANGE,
                    change_message=self.logged % {"state": IdempotencyKey.State(state).label},
                )
        return count, len(ids) - count


def _as_failed(rows: LeasedQuerySet) -> int:
    return rows.resolve(failed=StoredFailure("It was resolved as failed by hand."))


def _as_completed(rows: LeasedQuerySet) -> int:
    return rows.resolve(completed=None)


def _as_retryable(rows: LeasedQuerySet) -> int:
    return rows.resolve(retry=True)


RESOLVE_COMPLETED = Move(
    LeasedQuerySet.resolvable,
    _as_completed,
    gettext_lazy("Resolved as completed, with the result None; it was %(state)s."),
)
RESOLVE_FAILED = Move(
    LeasedQuerySet.resolvable,
    _as_failed,
    gettext_lazy("Resolved as failed for good; it was %(state)s."),
)
RESOLVE_RETRY = Move(
    LeasedQuerySet.resolvable,
    _as_retryable,
    gettext_lazy("Resolved: it may be executed again; it was %(state)s."),
)
RELEASE = Move(
    LeasedQuerySet.releasable,
    LeasedQuerySet.release,
    gettext_lazy("Released; it was %(state)s."),
)

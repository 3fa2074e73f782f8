"""Retry and discard by hand: what moved is in the admin's log, what did not is told with why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib.admin.models import CHANGE, LogEntry
from django.db import router, transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from outbox.models import OutboxMessage
from outbox.querysets import OutboxQuerySet

if TYPE_CHECKING:
    from django.db.models import QuerySet

    StrPromise = Any

MOST = 10_000
"""Messages that one move takes at once: each of them gets its line in the log."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How many messages moved, and why how many others did not."""

    count: int
    skipped: Counter[str]

    def skipped_text(self) -> str:
        """Return a sentence such as "3 were skipped: 2 executed, 1 held by a relay."."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        total = self.skipped.total()
        text = ngettext(
            "%(total)d was skipped: %(reasons)s.", "%(total)d were skipped: %(reasons)s.", total
        )
        return text % {"total": total, "reasons": reasons}


@dataclass(frozen=True, slots=True)
class Move:
    """A change of state that a person may ask for."""

    name: str
    movable: Callable[[OutboxQuerySet], OutboxQuerySet]
    apply: Callable[[OutboxQuerySet], int]
    logged: StrPromise
    barred: Callable[[OutboxQuerySet], OutboxQuerySet] = OutboxQuerySet.none
    """What could move but for the reason in ``bar``."""
    bar: StrPromise = ""

    def make(self, chosen: QuerySet[OutboxMessage], user_id: Any) -> Moved:
        """Move what can be moved of the first ``MOST`` messages chosen, and log it for the user.

        Both in one transaction. A message that a relay holds at this moment is skipped.
        """
        ids = chosen_ids(chosen)
        alias = router.db_for_write(OutboxMessage)
        rows = OutboxMessage.objects.using(alias)
        with transaction.atomic(using=alias):
            movable = self.movable(rows.filter(pk__in=ids))
            keys = movable.lock_ordering_keys()
            free = movable.filter(ordering_key__in=keys).select_for_update(skip_locked=True)
            # Locked before it moves: the log then tells of these rows, and of no other.
            locked = list(free.only("pk", "task", "status").order_by("status", "pk"))
            others = rows.filter(pk__in=set(ids) - {message.pk for message in locked})
            held = self.movable(others).values_list("pk", flat=True)
            skipped = Counter({_("held by a relay at this moment"): len(held)})
            left = others.exclude(pk__in=list(held))
            barred = list(self.barred(left).values_list("pk", flat=True))
            skipped[str(self.bar)] = len(barred)
            skipped.update(state_counts(left.exclude(pk__in=barred)))
            count = self.apply(rows.filter(pk__in=[message.pk for message in locked]))
            for status, group in groupby(locked, key=attrgetter("status")):
                LogEntry.objects.log_actions(
                    user_id=user_id,
                    queryset=list(group),
                    action_flag=CHANGE,
                    change_message=self.logged % {"state": OutboxMessage.Status(status).label},
                )
        return Moved(count, +skipped)


def _within_window(rows: OutboxQuerySet) -> OutboxQuerySet:
    return rows.retryable().exclude(pk__in=rows.older_than_window().values("pk"))


def _too_old(rows: OutboxQuerySet) -> OutboxQuerySet:
    return rows.retryable().older_than_window()


RETRY = Move(
    "retry",
    _within_window,
    OutboxQuerySet.retry,
    gettext_lazy("Retried; it was %(state)s."),
    _too_old,
    gettext_lazy(
        "older than the window in which an earlier execution would be recognised: find out "
        "whether it has taken effect, then use “Retry although older than the window”"
    ),
)
RETRY_LATE = Move(
    "retry_late",
    OutboxQuerySet.retryable,
    partial(OutboxQuerySet.retry, older_than_window=True),
    gettext_lazy("Retried although older than the window; it was %(state)s."),
)
DISCARD = Move(
    "discard",
    OutboxQuerySet.discardable,
    OutboxQuerySet.discard,
    gettext_lazy("Discarded; it was %(state)s."),
)


def chosen_ids(chosen: QuerySet[OutboxMessage]) -> list[UUID]:
    """Return the ids of the messages that a move of this queryset would look at."""
    return list(chosen.values_list("pk", flat=True)[:MOST])


def state_counts(rows: QuerySet[OutboxMessage]) -> Counter[str]:
    """Return how many messages of each state there are, by the state's label."""
    return Counter(
        str(OutboxMessage.Status(status).label)
        for status in rows.order_by("status").values_list("status", flat=True)
    )

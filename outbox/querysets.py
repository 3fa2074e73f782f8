"""What moves between the states. A change is one conditional statement; it says how many moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connections, models, router, transaction
from django.db.models import Case, ExpressionWrapper, F, Q, Value, When
from django.db.models.functions import Now

from idempotency.conf import conf as idempotency_conf
from idempotency.conf import duration
from outbox import ordering_querysets
from outbox.relay_querysets import APPEND_ERROR, KEPT_ERRORS, RelayQuerySet, storable_text

ORDERING_KEY = "ordering_key"
"""The header of messages that have one, so that their receipts go on with the key."""
RETRYABLE = ("dead", "failed", "expired")
STUCK = Q(status="published", awaits_receipt=True, available_at=None)
DISCARDABLE = Q(status__in=("pending", "dead", "failed")) | STUCK
# Nobody waits for these, and no relay; a published message that awaits a receipt is not among them.
FINISHED = ("executed", "published", "discarded")
PURGEABLE = (*FINISHED, *RETRYABLE)


class OutboxQuerySet(RelayQuerySet):
    """``OutboxMessage.objects.filter(...)``: the states, and what moves between them."""

    _db: str | None

    def pending(self) -> OutboxQuerySet:
        return self.filter(status="pending")

    def due(self) -> OutboxQuerySet:
        """Messages whose moment has come, which a relay would claim now."""
        return self.filter(available_at__lte=Now(), blocked=False)

    def blocked(self) -> OutboxQuerySet:
        """Pending messages that wait until an earlier one of their ordering key is over."""
        return self.filter(blocked=True)

    def open_of(self, ordering_key: str) -> OutboxQuerySet:
        """The message for which the others of the key wait, if there is one."""
        return self.filter(ordering_querysets.OPEN, ordering_key=ordering_key)

    def published(self) -> OutboxQuerySet:
        return self.filter(status="published")

    def executed(self) -> OutboxQuerySet:
        return self.filter(status="executed")

    def failed(self) -> OutboxQuerySet:
        return self.filter(status="failed")

    def expired(self) -> OutboxQuerySet:
        return self.filter(status="expired")

    def dead(self) -> OutboxQuerySet:
        return self.filter(status="dead")

    def stuck(self) -> OutboxQuerySet:
        """Published messages whose receipt never came, however often they were redelivered."""
        return self.filter(STUCK)

    def retryable(self) -> OutboxQuerySet:
        """What ``retry`` moves, unless it is older than the window."""
        return self.filter(Q(status__in=RETRYABLE) | STUCK)

    def older_than_window(self) -> OutboxQuerySet:
        """Messages that were published, and are older than ``IDEMPOTENCY_TTL``.

        The key under which an earlier delivery was executed, or another message with the same
        business key, may be forgotten: published again, such a message could take effect twice.
        """
        return self.filter(_older_than_window())

    def discardable(self) -> OutboxQuerySet:
        """What ``discard`` moves."""
        return self.filter(DISCARDABLE)

    def task_names(self, limit: int = 1000) -> list[str]:
        """Return the tasks' names in the whole table, in order, ``limit`` at most.

        One step down the index for each name, however many messages there are.
        """
        with connections[self.db].cursor() as cursor:
            cursor.execute(TASK_NAMES, [limit])
            return [name for (name,) in cursor]

    def retry(self, *, older_than_window: bool = False) -> int:
        """Make the dead, failed, expired and stuck messages of this queryset pending again.

        They keep their ids, attempts start from 0, and an expiry that has passed is dropped. One
        with an ordering key waits for its turn if another of the key is under way.
        Those that are older than the window are skipped, unless ``older_than_window`` says that
        somebody has found out that they took no effect. Returns how many moved.
        """
        states = Q(status__in=RETRYABLE) | STUCK
        return self._move(
            states if older_than_window else states & ~_older_than_window(),
            status="pending",
            blocked=ExpressionWrapper(~Q(ordering_key=""), models.BooleanField()),
            attempts=0,
            redeliveries=0,
            available_at=Now(),
            published_at=None,
            expires_at=Case(When(expires_at__gt=Now(), then=F("expires_at")), default=Value(None)),
        )

    def discard(self) -> int:
        """End the pending, dead, failed and stuck messages of this queryset: no relay takes them.

        A row that a relay holds at this moment is skipped. Returns how many moved.
        """
        return self._move(DISCARDABLE, status="discarded", blocked=False, available_at=None)

    def purge(
        self, older_than: timedelta, batch_size: int = 1000, states: Iterable[str] = FINISHED
    ) -> int:
        """Delete at most ``batch_size`` messages; return how many. Call it until that is 0.

        Those of this queryset that have been in one of ``states`` for longer than ``older_than``:
        by default executed, discarded, and published without a receipt to wait for. Dead, failed
        and expired ones wait for a person and go only where ``states`` names them. Never deleted:
        a pending message; one whose receipt is outstanding; one with a key before
        ``IDEMPOTENCY_TTL`` is over, because the key could be enqueued again; one that is held.

        Raises ``ValueError`` for another state, a negative age and a batch without a row.
        """
        return self._purge(older_than, batch_size, states, {})

    def purge_in_batches(
        self, older_than: timedelta, batch_size: int = 1000, states: Iterable[str] = FINISHED
    ) -> Iterator[int]:
        """Purge batch by batch, a transaction each, and give how many each deleted, to the end.

        Each goes on where the last one ended: past what that deleted, which the index still has
        while a transaction is open anywhere. Raises what ``purge`` raises.
        """
        names, reached = list(states), dict[str, datetime]()
        deleted = batch_size
        while deleted == batch_size:
            deleted = self._purge(older_than, batch_size, names, reached)
            yield deleted

    def _purge(
        self,
        older_than: timedelta,
        batch_size: int,
        states: Iterable[str],
        reached: dict[str, datetime],
    ) -> int:
        """``reached``: of each state, when the last message was created that a batch has taken."""
        names = list(dict.fromkeys(states))
        if unknown := set(names) - set(PURGEABLE):
            raise ValueError(
                f"{', '.join(sorted(unknown))}: not a state that is purged, which are "
                f"{', '.join(PURGEABLE)}. A pending message must be discarded first."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        age = duration(older_than, "older_than", least=timedelta(0))
        alias = self._db or router.db_for_write(self.model)
        deleted = 0
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            # Each state by itself, oldest first, and no plan but the index's own order: with old
            # statistics the planner would read and sort all that is to go, for each batch.
            cursor.execute(READ_IN_ORDER)
            for name in names:
                rows = self.using(alias).filter(_over_since(age), status=name)
                if name in reached:
                    rows = rows.filter(created_at__gte=reached[name])
                free = rows.order_by("created_at", "pk").select_for_update(skip_locked=True)
                taken = list(free.values_list("pk", "created_at")[: batch_size - deleted])
                if taken:
                    reached[name] = taken[-1][1]
                    ids = [id for id, _ in taken]
                    deleted += self.using(alias).filter(pk__in=ids).delete()[0]
        return deleted

    def lock_ordering_keys(self) -> list[str]:
        """Lock the keys of these messages until the transaction ends; return them and ``""``.

        Before the messages, because who holds a key waits for no message.
        """
        ordered = self.order_by().exclude(ordering_key="")
        keys = list(ordered.values_list("ordering_key", flat=True).distinct())
        if keys:
            ordering_querysets.lock(self.db, keys)
        return ["", *keys]

    def _move(self, states: Q, **changes: Any) -> int:
        alias = self._db or router.db_for_write(self.model)
        rows = self.using(alias).filter(states)
        rows.query.select_for_update = False  # the rows are locked below, after their keys
        if rows.query.distinct:  # PostgreSQL locks no row of a SELECT DISTINCT
            rows = OutboxQuerySet(self.model, using=alias).filter(states, pk__in=rows.values("pk"))
        with transaction.atomic(using=alias):
            keys = rows.lock_ordering_keys()
            free = rows.filter(ordering_key__in=keys).select_for_update(skip_locked=True)
            moved = self.model._base_manager.using(alias).filter(
                states, pk__in=free.order_by().values("pk")
            )
            count = moved.update(**changes)
            if len(keys) > 1:
                ordering_querysets.open_next(alias, keys)
            return count

    # Receipts.

    def mark_executed(self, id: UUID) -> int:
        """Record that the message's task has committed, in the transaction that commits it.

        Whatever the row said before: a relay that was killed between the broker's confirm and its
        own commit leaves a pending row behind whose task runs.
        """
        with transaction.atomic(using=self.db):
            moved = self._execute(EXECUTED, [id])
            for key in self.filter(pk=id).exclude(ordering_key="").values_list(ORDERING_KEY):
                ordering_querysets.advance(self.db, key)
        return moved

    @staticmethod
    def receipt(id: UUID, ordering_key: str = "") -> list[tuple[str, list[Any]]]:
        """Return ``mark_executed`` as statements, for others to execute with their own."""
        advancing = ordering_querysets.advancing(ordering_key) if ordering_key else []
        return [(EXECUTED, [id]), *advancing]

    def mark_failed(self, id: UUID, error: str) -> int:
        """Record that Celery has given the message's task up, unless it was executed."""
        parameters: Any = {"id": id, "error": storable_text(error), "kept": KEPT_ERRORS}
        with transaction.atomic(using=self.db), connections[self.db].cursor() as cursor:
            cursor.execute(FAILED, parameters)
            moved: list[tuple[str, bool]] = cursor.fetchall()
            if keys := [key for key, is_open in moved if key and not is_open]:
                ordering_querysets.advance(self.db, keys)
        return len(moved)


def _older_than_window() -> Q:
    # From its creation on, because nobody knows which of its deliveries was executed.
    return Q(published_at__isnull=False, created_at__lt=Now() - idempotency_conf.TTL)


def _over_since(age: timedelta) -> Q:
    """Over for so long: since the last that is known of it, and never before it was created."""
    outstanding = Q(status="published", awaits_receipt=True)
    key_is_open = ~Q(key="") & Q(created_at__gte=Now() - idempotency_conf.TTL)
    return (
        Q(created_at__lt=Now() - age)
        & ~Q(executed_at__gte=Now() - age)
        & ~Q(published_at__gte=Now() - age)
        & ~outstanding
        & ~key_is_open
    )


# SELECT DISTINCT would read the whole table.
TASK_NAMES = """
WITH RECURSIVE names (name) AS (
    (SELECT task FROM outbox_outboxmessage ORDER BY task LIMIT 1)
    UNION ALL
    SELECT (SELECT task FROM outbox_outboxmessage WHERE task > name ORDER BY task LIMIT 1)
    FROM names
    WHERE name IS NOT NULL
)
SELECT name FROM names WHERE name IS NOT NULL LIMIT %s
"""

READ_IN_ORDER = """
SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true)
"""

EXECUTED = """
UPDATE outbox_outboxmessage
SET status = 'executed', executed_at = clock_timestamp(), available_at = NULL, blocked = false,
    published_at = coalesce(published_at, clock_timestamp())
WHERE id = %s AND status <> 'executed'
"""

# A blocked message waits to be published again: what became of an earlier delivery is past.
FAILED = f"""
UPDATE outbox_outboxmessage
SET status = 'failed', available_at = NULL,
    published_at = coalesce(published_at, clock_timestamp()),
    errors = {APPEND_ERROR.format(attempt="attempts", error="%(error)s::text")}
WHERE id = %(id)s AND status IN ('pending', 'published') AND NOT blocked
RETURNING ordering_key, awaits_receipt
"""

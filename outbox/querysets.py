"""All SQL of the outbox. A state change is one conditional statement; it says how many moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import connections, models, router, transaction
from django.db.models import Case, ExpressionWrapper, F, Q, Value, When
from django.db.models.functions import Now

from idempotency.conf import conf as idempotency_conf
from idempotency.conf import duration
from idempotency.decorators import guard_of
from outbox import canvas, ids, ordering_querysets, wire
from outbox.exceptions import DuplicateKey, TransactionRequired
from outbox.insert_querysets import Draft, in_parts, insert
from outbox.relay_querysets import APPEND_ERROR, KEPT_ERRORS, RelayQuerySet, storable_text

if TYPE_CHECKING:
    from celery.canvas import Signature, group

    from outbox.models import OutboxMessage

KEY_LENGTH = 255
ORDERING_KEY = "ordering_key"
"""The header of messages that have one, so that their receipts go on with the key."""
RETRYABLE = ("dead", "failed", "expired")
STUCK = Q(status="published", awaits_receipt=True, available_at=None)
DISCARDABLE = ("pending", "dead", "failed")
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
        return self.filter(status__in=DISCARDABLE)

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
        """End the pending, dead and failed messages of this queryset: they are not published.

        A row that a relay holds at this moment is skipped. Returns how many moved.
        """
        return self._move(
            Q(status__in=DISCARDABLE), status="discarded", blocked=False, available_at=None
        )

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


class OutboxManager(models.Manager.from_queryset(OutboxQuerySet)):  # type: ignore[misc]
    """``OutboxMessage.objects``."""

    def enqueue(
        self,
        signature: Signature,
        *,
        key: str | None = None,
        ordering_key: str = "",
        using: str | None = None,
    ) -> OutboxMessage:
        """Write one message in the current transaction; it is published if that commits.

        ``signature``: ``task.s(...)``, with ``.set(countdown=, eta=, expires=, queue=, …)`` if
        wanted, or a chain. ``key``: a name for the intent, 1 to 255 characters; the same task and
        key again writes nothing and returns the first message. ``ordering_key``: what must happen
        in order, at most 255 characters; messages of one such key are executed one at a time, in
        the order in which their transactions commit. ``using``: the database alias.

        Raises ``TransactionRequired`` outside ``transaction.atomic()`` on that alias,
        ``DuplicateKey`` for the same key with other arguments, ``UnsupportedSignature``,
        ``UnserializableArgument`` and ``ValueError`` for what cannot be held; nothing is written.
        """
        keys = None if key is None else [key]
        ordering_keys = None if ordering_key == "" else [ordering_key]
        return self.enqueue_many([signature], keys=keys, ordering_keys=ordering_keys, using=using)[
            0
        ]

    def enqueue_many(
        self,
        signatures: Iterable[Signature] | group,
        *,
        keys: Iterable[str] | None = None,
        ordering_keys: Iterable[str] | None = None,
        using: str | None = None,
    ) -> list[OutboxMessage]:
        """Write several messages with one INSERT: a sequence of signatures, or a group.

        ``keys``, ``ordering_keys``: one for each signature; of the latter ``""`` says none. Raises
        what ``enqueue`` raises; all are written or none.
        """
        alias = using or self._db or router.db_for_write(self.model)
        if not connections[alias].in_atomic_block:
            raise TransactionRequired(
                f"enqueue() on {alias!r} needs an open transaction: the message must commit with "
                f"the rows it belongs to. Wrap both in transaction.atomic(using={alias!r})."
            )
        members = canvas.members(signatures)
        keys = [""] * len(members) if keys is None else _checked_keys("key", keys, len(members))
        if ordering_keys is not None:
            ordering_keys = _checked_keys(ORDERING_KEY, ordering_keys, len(members), least=0)
        drafts = [
            self._draft(signature, key, alias) for signature, key in zip(members, keys, strict=True)
        ]
        if ordering_keys is not None and any(ordering_keys):
            return self._insert_ordered(drafts, ordering_keys, alias)
        return self._insert(drafts, alias) if drafts else []

    async def aenqueue(self, signature: Signature, **options: Any) -> OutboxMessage:
        """Like ``enqueue``, from async code: in the thread that holds the transaction."""
        return await sync_to_async(self.enqueue)(signature, **options)

    async def aenqueue_many(
        self, signatures: Iterable[Signature] | group, **options: Any
    ) -> list[OutboxMessage]:
        """Like ``enqueue_many``, from async code."""
        return await sync_to_async(self.enqueue_many)(signatures, **options)

    def _draft(self, signature: Signature, key: str, alias: str) -> Draft:
        id = ids.id_for(signature)
        message = wire.build(signature, id)
        guard = guard_of(canvas.task_of(signature))
        draft: OutboxMessage = self.model(
            id=id,
            task=message.task,
            exchange=message.exchange,
            routing_key=message.routing_key,
            queue=message.queue,
            headers=message.headers,
            properties=message.properties,
            body=message.body,
            key=key,
            available_at=message.eta,
            expires_at=message.expires_at,
            awaits_receipt=guard is not None and guard.using == alias,
        )
        return draft, message.delay

    def _insert_ordered(
        self,
        drafts: list[Draft],
        ordering_keys: Sequence[str],
        alias: str,
    ) -> list[OutboxMessage]:
        """Insert them blocked, then open those whose turn it is."""
        counts = Counter(filter(None, ordering_keys))
        lasts = ordering_querysets.take(alias, counts)
        sequences = {key: count(lasts[key] - counts[key] + 1) for key in counts}
        for (draft, _), key in zip(drafts, ordering_keys, strict=True):
            if key:
                draft.headers[ORDERING_KEY] = draft.ordering_key = key
                draft.sequence = next(sequences[key])
                draft.blocked = True
        messages = self._insert(drafts, alias)
        opened = ordering_querysets.open_next(alias, counts)
        for message in messages:
            if message.id in opened:
                message.blocked, message.available_at = False, opened[message.id]
        return messages

    def _insert(self, drafts: list[Draft], alias: str) -> list[OutboxMessage]:
        """One INSERT. A (task, key) that exists already, or twice here, gives the first message."""
        written: dict[UUID, Any] = {}
        for part in in_parts(drafts):
            written |= insert(part, alias)
        messages = []
        for draft, _ in drafts:
            if draft.id in written:
                draft.available_at, draft.created_at, draft.expires_at = written[draft.id]
                draft._state.adding, draft._state.db = False, alias
                messages.append(draft)
            else:
                try:
                    messages.append(self._first(draft, alias))
                except DuplicateKey:
                    # The caller may catch it and commit: then none of this call is there.
                    self.using(alias).filter(pk__in=written).delete()
                    raise
        return messages

    def _first(self, draft: OutboxMessage, alias: str) -> OutboxMessage:
        first: OutboxMessage = self.using(alias).get(task=draft.task, key=draft.key)
        if bytes(first.body) == draft.body:
            return first  # a pickled object need not say that it equals itself
        accept = [message.properties["content_type"] for message in (draft, first)]
        (args, kwargs), (first_args, first_kwargs) = (
            message.arguments(accept) for message in (draft, first)
        )
        if list(args) != list(first_args) or kwargs != first_kwargs:
            raise DuplicateKey(
                f"{draft.task} is already enqueued under the key {draft.key!r} as message "
                f"{first.id}, with other arguments. A key names one intent: use another key for "
                "another intent. Nothing was written."
            )
        return first


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


def _checked_keys(name: str, keys: Iterable[Any], wanted: int, *, least: int = 1) -> list[str]:
    given = list(keys)
    if isinstance(keys, str) or len(given) != wanted:
        raise ValueError(f"{name}s must be a sequence with one for each of {wanted} signatures.")
    for key in given:
        if not isinstance(key, str) or not least <= len(key) <= KEY_LENGTH or "\0" in key:
            raise ValueError(
                f"{name} must be a string of {least} to {KEY_LENGTH} characters without NUL, "
                f"not {key!r}."
            )
    return given


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

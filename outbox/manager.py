"""``OutboxMessage.objects``: how a message comes to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import connections, models, router

from idempotency.decorators import guard_of
from outbox import canvas, ids, ordering_querysets, wire
from outbox.exceptions import DuplicateKey, TransactionRequired
from outbox.insert_querysets import Draft, in_parts, insert
from outbox.querysets import ORDERING_KEY, OutboxQuerySet

if TYPE_CHECKING:
    from celery.canvas import Signature, group

    from outbox.models import OutboxMessage

KEY_LENGTH = 255


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

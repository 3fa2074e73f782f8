"""One batch: claim -> publish -> settle, in one transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from functools import cache
from operator import add
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.timezone import get_default_timezone, is_aware, make_aware

from outbox import wire
from outbox.conf import conf
from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.outgoing import Outgoing, Published, Refused
from outbox.publisher import Publisher
from outbox.querysets import OutboxQuerySet
from outbox.relay_querysets import ClaimedMessage, Refusal
from outbox.turns import Turns
from outbox.watermark import Watermark

logger = logging.getLogger(__name__)

PUBLISHED_FROM = "published_from"

# Publishing ends before the server would end the session of a relay that holds its claim too long.
PUBLISH_SHARE = 2 / 3


def publish_timeout() -> float:
    """Seconds in which a claimed batch must be published."""
    seconds: float = conf.CLAIM_TIMEOUT.total_seconds()
    return seconds * PUBLISH_SHARE


@dataclass(frozen=True, slots=True)
class RelayResult:
    """How many messages were published, refused for now, and refused for good.

    ``expired`` ones are over without a receipt; ``postponed`` ones may still be waiting in their
    queue, and are looked at again.
    """

    published: int = 0
    failed: int = 0
    dead: int = 0
    expired: int = 0
    postponed: int = 0

    def __add__(self, other: RelayResult) -> RelayResult:
        return RelayResult(*map(add, astuple(self), astuple(other)))

    @property
    def claimed(self) -> int:
        return sum(astuple(self))


class Batch:
    """Some messages in two halves: claim and publish, then await the confirms and settle.

    Claim and settling are the two ends of one transaction on ``connection``: the claim is a lock
    on the rows. Between the halves another batch may begin, on a connection of its own. An error
    in either half ends the transaction.
    """

    def __init__(
        self,
        using: str,
        connection: BaseDatabaseWrapper,
        publisher: Publisher,
        watermark: Watermark,
        turns: Turns,
        *,
        size: int,
    ) -> None:
        self.using = using
        self.connection = connection
        self._size = size
        self.result = RelayResult()
        self._publisher = publisher
        self._watermark = watermark
        self._turns = turns
        self._transaction = self._claim_and_settle()
        self._claim: list[ClaimedMessage] = []
        self._now = ""
        self._published = Published()
        self._expired: list[UUID] = []
        self._waiting: list[UUID] = []

    @property
    def is_full(self) -> bool:
        """Whether more may be due than it could hold."""
        return len(self._claim) == self._size

    @property
    def unavailable(self) -> str:
        """Why the broker took no more, if it did not. Nothing is counted against any message."""
        return self._published.unavailable

    def begin(self) -> None:
        """Claim messages that are due and put them on their way; without any it ends at once."""
        with self._on_connection():
            next(self._transaction, None)
            self._publish()

    def finish(self) -> None:
        """Wait for the broker's word on each message, record what became of it, and commit.

        What was confirmed is settled whatever became of the rest.
        """
        with self._on_connection():
            self._publisher.await_confirms(self._published)
            next(self._transaction, None)
        for id, refused in self._published.refused.items():
            logger.warning("Message %s was refused by the broker: %s", id, refused.error)
        if self.result.dead:
            logger.error(
                "Messages that are dead now, and wait for somebody to retry or discard them: "
                "%s in database %r.",
                self.result.dead,
                self.using,
            )

    def _publish(self) -> None:
        made = {"published_at": self._now}
        if self.using != DEFAULT_DB_ALIAS:
            made[PUBLISHED_FROM] = self.using
        self._expired = [message.id for message in self._claim if message.expired]
        try:
            self._waiting = self._still_waiting()
        except BrokerUnavailable as error:
            self._published = Published(unavailable=str(error))
            return
        ended = {*self._expired, *self._waiting}
        readable, unreadable = _outgoing((m for m in self._claim if m.id not in ended), made)
        self._published = self._publisher.publish(readable, publish_timeout())
        self._published.refused |= unreadable

    @contextmanager
    def _on_connection(self) -> Iterator[None]:
        before = connections[self.using]
        connections[self.using] = self.connection
        try:
            yield
        except BaseException:
            self._transaction.close()
            raise
        finally:
            connections[self.using] = before

    def _claim_and_settle(self) -> Generator[None]:
        messages = OutboxMessage.objects.using(self.using)
        done = False
        try:
            with transaction.atomic(using=self.using):
                self._take(messages)
                if self._claim:
                    yield
                    self._record(messages)
            done = self.result.claimed == len(self._claim)
        finally:
            if not done:
                self._watermark.forget()

    def _take(self, messages: OutboxQuerySet) -> None:
        now = messages.limit_transaction(conf.CLAIM_TIMEOUT)
        self._now = _stamp(now)
        sweep(messages, self._watermark, now)
        start = self._watermark.start(now)
        began = time.perf_counter()
        self._claim = messages.claim(self._size, conf.BATCH_BYTES, start)
        took = timedelta(seconds=time.perf_counter() - began)
        latest = self._claim[-1].available_at if self._claim else None
        self._watermark.note(now, start, latest, took, len(self._claim))

    def _record(self, messages: OutboxQuerySet) -> None:
        published = self._published
        if published.confirmed:
            messages.settle(published.confirmed)
        if self._expired:
            messages.expire(self._expired)
        if self._waiting:
            messages.postpone(self._waiting)
        dead = 0
        if published.refused:
            dead = messages.refuse(
                [Refusal(id, r.error, r.permanent) for id, r in published.refused.items()]
            )
        if ordered := [message for message in self._claim if message.ordering_key]:
            self._turns.give(self._over(ordered))
        self.result = RelayResult(
            published=len(published.confirmed),
            failed=len(published.refused) - dead,
            dead=dead,
            expired=len(self._expired),
            postponed=len(self._waiting),
        )

    def _over(self, ordered: Iterable[ClaimedMessage]) -> set[str]:
        """Return the keys whose message is over: expired, or published and nobody will tell more.

        A receipt goes on with the key of a guarded one, in the transaction that writes it.
        """
        over = {*self._expired, *self._published.confirmed}
        return {
            message.ordering_key
            for message in ordered
            if message.id in over and (message.expired or not message.awaits_receipt)
        }

    def _still_waiting(self) -> list[UUID]:
        """Return the redeliveries whose last delivery may still be in its queue.

        It is not when the queue is empty, or when later messages of the queue have been executed:
        so a backlog does not become a storm, and what a broker forgot comes again.
        """
        is_empty = cache(self._publisher.is_empty)
        return [
            message.id
            for message in self._claim
            if message.redelivery
            and not message.expired
            and not message.overtaken
            and message.queue
            and not is_empty(message.queue)
        ]


def sweep(messages: OutboxQuerySet, watermark: Watermark, now: datetime) -> bool:
    """Look whether anything is due before the watermark, at a part of that, if it is time to."""
    if (stretch := watermark.stretch(now)) is None:
        return False
    began = time.perf_counter()
    _, due = messages.look(*stretch)
    took = timedelta(seconds=time.perf_counter() - began)
    watermark.note_stretch(now, stretch[0], took, due=due)
    return due


def _stamp(moment: datetime) -> str:
    """Return the moment with its offset, whatever ``USE_TZ`` is: another process reads it."""
    aware = moment if is_aware(moment) else make_aware(moment, get_default_timezone())
    return aware.isoformat()


def _outgoing(
    claim: Iterable[ClaimedMessage], made: dict[str, str]
) -> tuple[list[Outgoing], dict[UUID, Refused]]:
    """Return what can be published, and the errors of rows that somebody wrote by other means.

    ``made``: the headers that are made at the publish.
    """
    readable, unreadable = [], {}
    for message in claim:
        try:
            headers = wire.json_loads(message.headers)
            # A task that hands its own headers on hands this one on as well.
            headers.pop(PUBLISHED_FROM, None)
            headers |= made
            if "expires" in headers:
                headers["expires"] = message.expires_at and _stamp(message.expires_at)
            properties = wire.json_loads(message.properties) | {}
        except Exception as error:  # whatever a row holds, it must not stop the others
            reason = f"the row cannot be read: {type(error).__name__}: {error}"
            unreadable[message.id] = Refused(reason, permanent=True)
        else:
            readable.append(
                Outgoing(
                    message.id,
                    message.body,
                    headers,
                    properties,
                    message.exchange,
                    message.routing_key,
                    message.queue,
                    message.expires_in,
                )
            )
    return readable, unreadable

"""The relay: claim -> publish -> settle."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import timedelta
from functools import cache
from operator import add
from uuid import UUID

from celery import current_app
from django.db import (
    DEFAULT_DB_ALIAS,
    InterfaceError,
    InternalError,
    OperationalError,
    connections,
    transaction,
)

from outbox import wire
from outbox.conf import conf
from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.publisher import Outgoing, Published, Publisher, Refused
from outbox.relay_querysets import ClaimedMessage, Refusal

logger = logging.getLogger(__name__)

# Shortest upper bound of the wait before an unavailable broker or database is tried again.
FIRST_WAIT = timedelta(milliseconds=500)
LONGEST_WAIT = timedelta(seconds=10)
# InternalError: that is how PostgreSQL ends the session of a relay that outstayed its claim.
DATABASE_OUTAGES = (OperationalError, InterfaceError, InternalError)
# Publishing ends before the server would end the session of a relay that holds its claim too long.
PUBLISH_SHARE = 2 / 3


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


class Relay:
    """Moves due messages of one database alias to the broker of the default Celery app.

    Any number may run side by side. The claim is a lock on the rows: it ends with the
    transaction, so a relay that dies leaves nothing behind.
    """

    def __init__(self, using: str = "default", batch_size: int | None = None) -> None:
        """``batch_size``: most messages in a batch; ``OUTBOX_BATCH_SIZE`` unless given."""
        self.using = using
        self.batch_size = batch_size
        self.publisher = Publisher(current_app, self._publish_timeout)

    def run_once(self) -> RelayResult:
        """Claim one batch, publish it, settle it. An empty result: nothing was due.

        What was confirmed is settled whatever became of the rest. Raises ``BrokerUnavailable`` in
        an outage, with nothing counted against any message.
        """
        self.publisher.connect()
        messages = OutboxMessage.objects.using(self.using)
        with transaction.atomic(using=self.using):
            messages.limit_transaction(conf.CLAIM_TIMEOUT)
            claim = messages.claim(self.batch_size or conf.BATCH_SIZE, conf.BATCH_BYTES)
            if not claim:
                return RelayResult()
            expired = [message.id for message in claim if message.expired]
            waiting = self._waiting(claim)
            ended = {*expired, *waiting}
            readable, unreadable = _outgoing((m for m in claim if m.id not in ended), self.using)
            published = self.publisher.publish(readable, self._publish_timeout)
            published.refused |= unreadable
            result = self._settle(published, expired, waiting)
        self._report(published)
        if published.unavailable:
            raise BrokerUnavailable(published.unavailable)
        return result

    def drain(self) -> RelayResult:
        """Publish what is due until nothing is. Raises ``BrokerUnavailable`` in an outage."""
        total = RelayResult()
        while (result := self.run_once()).claimed:
            total += result
        return total

    def run(self, stop: threading.Event | None = None) -> None:
        """Publish until ``stop`` is set: at once while there is work, polling when there is none.

        Outlives outages of the broker and of the database; says so once when one begins and once
        when it ends.
        """
        stop = stop or threading.Event()
        outage = _Outage()
        while not stop.is_set():
            try:
                result = self.run_once()
            except BrokerUnavailable as error:
                stop.wait(outage.goes_on(f"The broker is unavailable: {error}"))
            except DATABASE_OUTAGES as error:
                connections[self.using].close()
                stop.wait(outage.goes_on(f"The database is unavailable: {_first_line(error)}"))
            else:
                outage.ended()
                if not result.claimed:
                    stop.wait(conf.POLL_INTERVAL.total_seconds())

    def close(self) -> None:
        """Close the connection to the broker."""
        self.publisher.close()

    @property
    def _publish_timeout(self) -> float:
        seconds: float = conf.CLAIM_TIMEOUT.total_seconds()
        return seconds * PUBLISH_SHARE

    def _waiting(self, claim: list[ClaimedMessage]) -> list[UUID]:
        """Return the redeliveries whose last delivery may still be in its queue.

        It is not when the queue is empty, or when later messages of the queue have been executed:
        so a backlog does not become a storm, and what a broker forgot comes again.
        """
        is_empty = cache(self.publisher.is_empty)
        return [
            message.id
            for message in claim
            if message.redelivery
            and not message.expired
            and not message.overtaken
            and message.queue
            and not is_empty(message.queue)
        ]

    def _settle(
        self, published: Published, expired: list[UUID], waiting: list[UUID]
    ) -> RelayResult:
        messages = OutboxMessage.objects.using(self.using)
        if published.confirmed:
            messages.settle(published.confirmed)
        if expired:
            messages.expire(expired)
        if waiting:
            messages.postpone(waiting)
        dead = 0
        if published.refused:
            dead = messages.refuse(
                [Refusal(id, r.error, r.permanent) for id, r in published.refused.items()]
            )
        return RelayResult(
            len(published.confirmed),
            len(published.refused) - dead,
            dead,
            len(expired),
            len(waiting),
        )

    def _report(self, published: Published) -> None:
        for id, refused in published.refused.items():
            logger.warning("Message %s was refused by the broker: %s", id, refused.error)


class _Outage:
    """Says once that something is unavailable and once that it is back; backs off in between."""

    def __init__(self) -> None:
        self.failures = 0

    def goes_on(self, reason: str) -> float:
        """Return the seconds to wait, drawn from zero to a bound that doubles ("full jitter")."""
        if not self.failures:
            logger.error("%s. No message is lost and no attempt counted; trying again.", reason)
        self.failures += 1
        bound = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self.failures, 10))
        return random.uniform(0, bound.total_seconds())  # noqa: S311

    def ended(self) -> None:
        if self.failures:
            logger.warning("Available again after %s failed tries.", self.failures)
        self.failures = 0


def _outgoing(
    claim: Iterable[ClaimedMessage], using: str
) -> tuple[list[Outgoing], dict[UUID, Refused]]:
    """Return what can be published, and the errors of rows that somebody wrote by other means."""
    readable, unreadable = [], {}
    for message in claim:
        try:
            readable.append(_made(message, using))
        except Exception as error:  # whatever a row holds, it must not stop the others
            reason = f"the row cannot be read: {type(error).__name__}: {error}"
            unreadable[message.id] = Refused(reason, permanent=True)
    return readable, unreadable


def _made(message: ClaimedMessage, using: str) -> Outgoing:
    headers = wire.json_loads(message.headers)
    # What is made at the publish: how long the broker may keep it, and when that was.
    if "expires" in headers:
        headers["expires"] = message.expires_at and message.expires_at.isoformat()
    headers["published_at"] = message.claimed_at.isoformat()
    if using != DEFAULT_DB_ALIAS:
        headers["published_from"] = using
    return Outgoing(
        message.id,
        message.body,
        headers,
        {**wire.json_loads(message.properties)},
        message.exchange,
        message.routing_key,
        message.queue,
        message.expires_in,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

"""The relay: one batch after the other, through outages, until it is told to stop."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from datetime import timedelta

from celery.app import app_or_default
from django.db import InterfaceError, InternalError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.batch import Batch, RelayResult, publish_timeout, sweep
from outbox.burst import Burst
from outbox.conf import conf
from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.publisher import Publisher
from outbox.querysets import OutboxQuerySet
from outbox.turns import Turns
from outbox.watermark import Watermark

__all__ = ["Relay", "RelayResult"]

logger = logging.getLogger(__name__)

# Shortest upper bound of the wait before an unavailable broker or database is tried again.
FIRST_WAIT = timedelta(milliseconds=500)
LONGEST_WAIT = timedelta(seconds=10)
# InternalError: that is how PostgreSQL ends the session of a relay that outstayed its claim.
DATABASE_OUTAGES = (OperationalError, InterfaceError, InternalError)


class Relay:
    """Moves due messages of one database alias to the broker of the default Celery app.

    Any number may run side by side. The claim is a lock on the rows: it ends with the
    transaction, so a relay that dies leaves nothing behind.
    """

    def __init__(self, using: str = "default", batch_size: int | None = None) -> None:
        """``batch_size``: most messages in a batch, at least 1; ``OUTBOX_BATCH_SIZE`` unless given.

        Raises ``ValueError`` for a batch without a message.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        self.using = using
        self.batch_size = batch_size
        # Not current_app, which is a proxy: the relay may run in another thread.
        self.publisher = Publisher(app_or_default(), publish_timeout())
        self._messages: OutboxQuerySet = OutboxMessage.objects.using(using)
        # What another relay held when it was killed is let go of within that time, or a bit more.
        self._watermark = Watermark(behind=2 * conf.CLAIM_TIMEOUT)
        self._turns = Turns(using)
        self._burst = Burst(using, self._batch_on)

    def run_once(self) -> RelayResult:
        """Claim one batch, publish it, settle it. An empty result: nothing was due.

        What was confirmed is settled whatever became of the rest. Raises ``BrokerUnavailable`` in
        an outage, with nothing counted against any message.
        """
        self._watermark.forget()
        return self._round()

    def drain(self) -> RelayResult:
        """Publish what is due until nothing is. Raises ``BrokerUnavailable`` in an outage."""
        total = RelayResult()
        for result in self._results():
            # Nothing from the watermark on is not yet nothing.
            last = result if result.claimed else self.run_once()
            total += last
            if not last.claimed:
                break
        return total

    def run(
        self, stop: threading.Event | None = None, beat: Callable[[], object] | None = None
    ) -> None:
        """Publish until ``stop`` is set: at once while there is work, polling when there is none.

        Outlives outages of the broker and of the database; says so once when one begins and once
        when it ends. ``beat`` is called in each round, in an outage too: the loop is alive.
        """
        stop = stop or threading.Event()
        outage = _Outage(self.using)
        beat = beat or bool
        empty_rounds = 0
        while not stop.is_set():
            beat()
            try:
                with closing(self._results()) as results:
                    for result in results:
                        beat()
                        outage.ended()
                        empty_rounds = 0 if result.claimed else empty_rounds + 1
                        if empty_rounds:
                            stop.wait(_pause(empty_rounds))
                        if stop.is_set():
                            break
            except BrokerUnavailable as error:
                stop.wait(outage.goes_on(f"The broker is unavailable: {error}"))
            except DATABASE_OUTAGES as error:
                connections[self.using].close()
                self._burst.close()
                stop.wait(
                    outage.goes_on(
                        f"The database {self.using!r} is unavailable: {_first_line(error)}"
                    )
                )

    def close(self) -> None:
        """Close the connections that are the relay's own."""
        self.publisher.close()
        self._burst.close()

    def _round(self) -> RelayResult:
        self.publisher.connect()
        self._turns.give()
        batch = self._batch_on(connections[self.using])
        batch.begin()
        batch.finish()
        return _result_of(batch)

    def _results(self) -> Generator[RelayResult]:
        """Give the result of each batch; an empty one: nothing was due from the watermark on.

        One batch after the other, and many that overlap as long as they are full.
        """
        # Nobody else sees what an open transaction has written, such as a test's.
        alone = connections[self.using].in_atomic_block
        idle = False
        while True:
            result = RelayResult() if idle and not self._is_due() else self._round()
            idle = not result.claimed
            yield result
            if result.claimed == self._size and not alone:
                with closing(self._burst.batches()) as batches:
                    for batch in batches:
                        yield _result_of(batch)

    def _is_due(self) -> bool:
        """Whether a round would find something, for less than an empty one costs."""
        messages, watermark = self._messages, self._watermark
        self._turns.give()
        start = watermark.start()
        began = time.perf_counter()
        now, due = messages.look(start)
        if not due and (further := watermark.start(now)) != start:
            start, began = further, time.perf_counter()
            now, due = messages.look(start)
        if not due:
            took = timedelta(seconds=time.perf_counter() - began)
            watermark.note(now, start, None, took)
        return due or sweep(messages, watermark, now)

    def _batch_on(self, connection: BaseDatabaseWrapper) -> Batch:
        return Batch(
            self.using,
            connection,
            self.publisher,
            self._watermark,
            self._turns,
            size=self._size,
        )

    @property
    def _size(self) -> int:
        return self.batch_size or conf.BATCH_SIZE


def _result_of(batch: Batch) -> RelayResult:
    if batch.unavailable:
        raise BrokerUnavailable(batch.unavailable)
    return batch.result


class _Outage:
    """Says once that something is unavailable and once that it is back; backs off in between."""

    def __init__(self, using: str) -> None:
        self.using = using
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
            logger.warning(
                "Available again for database %r, after %s failed tries.", self.using, self.failures
            )
        self.failures = 0


def _pause(empty_rounds: int) -> float:
    """Return the seconds to wait after so many rounds in a row that found nothing.

    A quarter of the interval, half of it, then all of it: messages seldom come alone.
    """
    share: float = 0.5 ** max(0, 3 - empty_rounds)
    return conf.POLL_INTERVAL.total_seconds() * share


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

"""Producers: they commit intents all along, straight to the database and at a moderate rate."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from django.db import Error, connections, transaction

from tests.faults.tasks import intend

if TYPE_CHECKING:
    from concurrent.futures import Future

NUMBER = 3
MOST_AT_ONCE = 20
LONGEST_HOLD = 1.5  # seconds for which the last producer keeps a transaction open
RETRY = 0.2  # seconds
KEYS = 20  # ordering keys, of which a share of the transactions has one


class Producers:
    """Threads that commit intents, ``rate`` a second, until the ``with`` statement ends.

    Some transactions roll back, as a whole or to a savepoint; some messages are put off; some make
    a task commit a further one; some are to be executed in order. The last producer is slow: others
    commit while its transactions are open. Nothing is committed while ``held`` is set.
    """

    def __init__(self, seed: int, *, rate: float, using: str = "default") -> None:
        self.held = threading.Event()
        self._seed = seed
        self._pace = NUMBER / rate  # seconds for one message of one producer
        self._using = using
        self.committed = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(NUMBER)
        self._running: list[Future[None]] = []

    def require_running(self) -> None:
        """Raise what a producer ended with, if one has ended."""
        for each in self._running:
            if each.done():
                each.result()

    def __enter__(self) -> Self:
        self._running = [self._pool.submit(self._produce, number) for number in range(NUMBER)]
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def _produce(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        slow = number == NUMBER - 1
        names = itertools.count()
        try:
            while not self._stop.is_set():
                labels = [f"{number}-{next(names)}" for _ in range(chance.randint(1, MOST_AT_ONCE))]
                if self._stop.wait(self._pace * len(labels)):
                    return
                if self.held.is_set():
                    continue
                hold = chance.uniform(0, LONGEST_HOLD) if slow else 0.0
                try:
                    self._commit(chance, labels, hold)
                except Error:
                    # PostgreSQL restarts; whether the COMMIT took place is in the table.
                    connections[self._using].close()
                    self._stop.wait(RETRY)
                else:
                    with self._lock:
                        self.committed += len(labels)
        finally:
            connections.close_all()

    def _commit(self, chance: random.Random, labels: list[str], hold: float) -> None:
        fate = chance.random()
        options = {"countdown": chance.uniform(0.2, 2)} if chance.random() < 0.05 else {}
        successors = chance.randint(1, 2) if chance.random() < 0.05 else 0
        key = f"key {chance.randrange(KEYS)}" if chance.random() < 0.3 else ""
        with transaction.atomic(using=self._using):
            if fate < 0.1:
                with transaction.atomic(using=self._using):
                    intend(
                        [f"savepoint {label}" for label in labels],
                        ordering_key=key,
                        using=self._using,
                    )
                    transaction.set_rollback(True, using=self._using)
            intend(labels, successors=successors, ordering_key=key, using=self._using, **options)
            self._stop.wait(hold)
        if fate > 0.9:
            with transaction.atomic(using=self._using):
                intend(
                    [f"rolled back {label}" for label in labels],
                    ordering_key=key,
                    using=self._using,
                )
                transaction.set_rollback(True, using=self._using)

"""Relays, workers and the broker are killed at random moments while messages are committed."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from django.db import connections, transaction

from tests.faults.ledger import audit, backlog
from tests.faults.schedule import draw_kills
from tests.helpers import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_project.processes import Process
    from tests.faults.schedule import Kill
    from tests.faults.system import System

MESSAGES = 5000
PRODUCERS = 2
VICTIMS = ("relay-1", "relay-2", "worker-1", "worker-2", "broker")
ROUNDS = 2
# Producers stay this far ahead of the workers, so that there is work in flight at every kill.
AHEAD = 800
# kombu's Redis transport takes a message off its list before it notes it as unacked: what a worker
# or the server dies with at that moment comes again only from the relay.
RELAY = {"OUTBOX_REDELIVER_AFTER": "5"}
LOST_PATIENCE = 120.0  # seconds without any progress that is waited for
MOST_ENDS = 5


class Run:
    """The processes of one run by name, killed and started again as a schedule says."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.kills: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self._processes: dict[str, Process] = {}

    def start(self, victim: str) -> None:
        if victim == "broker":
            self.system.broker.server.start()
        elif victim.startswith("relay"):
            self._processes[victim] = self.system.start_relay(env=RELAY)
        else:
            self._processes[victim] = self.system.start_worker(ready=False, concurrency=2)

    def suffer(self, kill: Kill) -> None:
        """Wait for the kill's moment; kill its victims, then start them again."""
        problem = f"{kill} does not come"
        self.wait_for(lambda: backlog().executed >= kill.after, problem)
        time.sleep(kill.delay)
        self.wait_for(lambda: all(map(self._busy, kill.victims)), problem, interval=0.002)
        # Relays first: the work that they were seen to have is over in milliseconds.
        for victim in sorted(kill.victims, key=VICTIMS.index):
            self._kill(victim)
        for victim in reversed(kill.victims):
            self.start(victim)

    def wait_for(
        self, condition: Callable[[], bool], problem: str, *, interval: float = 0.1
    ) -> None:
        """Wait, and do what a supervisor does: start a worker again that ended by itself.

        (kombu's Redis transport lets a worker end when the server dies at the wrong moment.)
        """

        def supervised() -> bool:
            for name, process in self._processes.items():
                if not process.running:
                    assert name.startswith("worker"), f"{name} ended: {process.output()}"
                    self.kills["worker, by itself"] += 1
                    assert self.kills["worker, by itself"] < MOST_ENDS, process.output()
                    self.start(name)
            return condition()

        def told() -> str:
            return f"{problem}: {self.system.describe()}, {dict(self.kills)}"

        wait_for(supervised, timeout=LOST_PATIENCE, interval=interval, message=told)

    def finish(self) -> None:
        """Let everything come to its end, what the workers hold unacknowledged included."""
        for _ in range(MOST_ENDS):
            self.wait_for(
                lambda: self.system.quiet() and backlog().in_flight == 0, "messages are left"
            )
            workers = [name for name in self._processes if name.startswith("worker")]
            for name in workers:
                self._processes.pop(name).stop()
            if self.system.undelivered() == 0:
                return
            for name in workers:
                self.start(name)
        raise AssertionError(f"The workers never finish: {self.system.describe()}")

    def _kill(self, victim: str) -> None:
        role = victim.partition("-")[0]
        self.kills[role] += 1
        self.hits[role] += self._busy(victim)
        if victim == "broker":
            self.system.broker.server.kill()
        else:
            self._processes[victim].kill()

    def _busy(self, victim: str) -> bool:
        """Whether there is work in flight for it."""
        waiting = backlog()
        return {
            "relay": waiting.pending > 0,
            "worker": waiting.published > 0,
            "broker": waiting.in_flight > 0,
        }[victim.partition("-")[0]]


@pytest.mark.slow
def test_nothing_is_lost_or_doubled(system: System, seed: int, tell: Callable[[str], None]) -> None:
    began = time.monotonic()
    run = Run(system)
    for victim in VICTIMS:
        run.start(victim)
    stop = threading.Event()
    with ThreadPoolExecutor(PRODUCERS) as pool:
        producers = [
            pool.submit(_produce, system, seed, number, stop) for number in range(PRODUCERS)
        ]
        try:
            for kill in draw_kills(seed, VICTIMS, rounds=ROUNDS, messages=MESSAGES):
                run.suffer(kill)
            # From here on nothing fails: everything that was committed must come to its end.
            run.wait_for(lambda: all(map(Future.done, producers)), "producers do not end")
            for producer in producers:
                producer.result()
        finally:
            stop.set()
    run.finish()

    ledger = audit()
    tell(
        f"seed {seed}, {time.monotonic() - began:.0f} s, kills {dict(run.kills)}, "
        f"of them while it had work {dict(run.hits)}; {ledger}"
    )
    assert ledger.violations() == [], f"seed {seed}: {ledger}"
    assert ledger.committed == MESSAGES
    assert ledger.delivered_again, f"void: nothing was delivered twice with seed {seed}"
    assert set(run.hits.elements()) == {"relay", "worker", "broker"}, f"void: {run.hits}"


def _produce(system: System, seed: int, number: int, stop: threading.Event) -> None:
    """Commit this producer's share, a few messages at a time; take every tenth back."""
    chance = random.Random(f"{seed} {number}")
    labels = [f"{number}-{n}" for n in range(MESSAGES // PRODUCERS)]
    try:
        while labels and not stop.is_set():
            wait_for(
                lambda: backlog().in_flight < AHEAD or stop.is_set(),
                timeout=LOST_PATIENCE,
                interval=0.05,
            )
            few = [labels.pop() for _ in range(min(len(labels), chance.randint(1, 200)))]
            system.commit(few)
            if chance.random() < 0.1:
                with transaction.atomic():
                    system.commit(f"taken back {label}" for label in few)
                    transaction.set_rollback(True)
    finally:
        connections.close_all()

"""One run: faults while intents are committed, then none until all have ended; then the audit."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.faults.injection import Injector
from tests.faults.ledger import audit, in_flight, suspects
from tests.faults.looks import DEAR_LOOKS
from tests.faults.members import Member
from tests.faults.network import Network
from tests.faults.producers import Producers
from tests.faults.schedule import draw_faults
from tests.faults.trail import trail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sample_project.servers import PostgresServer
    from tests.faults.ledger import Ledger
    from tests.faults.schedule import Fault
    from tests.faults.system import System

MEMBERS = ("relay-1", "relay-2", "worker-1", "worker-2")
CLAIM_TIMEOUT = 3.0
ENV = {
    "OUTBOX_CLAIM_TIMEOUT": str(CLAIM_TIMEOUT),
    "OUTBOX_REDELIVER_AFTER": "3",
}
TICK = 0.02  # seconds
LOOK = 1.0  # seconds between two looks at the backlog
# Producers wait while so much is in flight: workers that are down for long do not drown later.
MOST_IN_FLIGHT = 3000
AT_ONCE = 3  # faults that last at the same time
STALLED = 300.0  # seconds without a commit in the safety phase
LIVENESS = 180.0  # seconds within which everything must have come to its end
LOOKS = 3  # times in a row that nothing is under way

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of: the same plan has the same faults at the same messages."""

    seed: int
    messages: int
    faults: int
    rate: float  # messages a second

    @property
    def env(self) -> dict[str, str]:
        """The environment of its relays and workers; with every other seed relays seek."""
        return ENV | ({DEAR_LOOKS: "1"} if self.seed % 2 else {})

    def draw(self) -> list[Fault]:
        return draw_faults(self.seed, self.faults, messages=self.messages)


@dataclass(slots=True)
class Outcome:
    """What became of a run."""

    plan: Plan
    broker: str
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    to_converge: float = 0.0
    ledger: Ledger = field(init=False)
    suspects: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """What must not be: in the ledger, or a relay that ended by itself."""
        # A network that fails at each try looks to the relay as if the message broke it.
        wrong = [name for name in self.ledger.violations() if name != "blamed"]
        return wrong + ["relay ended"] * self.ends["relay"]

    def void(self) -> list[str]:
        """What must have happened for the run to say anything."""
        return [name for name in ("redelivered", "taken_over") if not getattr(self.ledger, name)]

    def __str__(self) -> str:
        return (
            f"seed {self.plan.seed}, {self.broker}, {self.seconds:.0f} s "
            f"(converged in {self.to_converge:.0f} s), faults {_told(self.faults)}; {self.ledger}; "
            f"ended by themselves: {_told(self.ends) or 'none'}"
        )


class Campaign:
    """Two relays, two workers, producers, a broker and PostgreSQL, with faults by plan."""

    def __init__(
        self,
        system: System,
        postgres: PostgresServer | None,
        plan: Plan,
        enough: threading.Event | None = None,
    ) -> None:
        """``enough``: when it is set the safety phase ends early, with the faults that last."""
        self._system = system
        self._enough = enough or threading.Event()
        self._postgres = postgres
        self._plan = plan
        self._outcome = Outcome(plan, system.broker.name)
        self._members: dict[str, Member] = {}
        self._look_at = 0.0

    def run(self) -> Outcome:
        """Run to the end; the outcome says what was wrong, and raises nothing for it."""
        began = time.monotonic()
        with Network() as network, trail(self._system.using):
            for name in MEMBERS:
                self._members[name] = Member(name, self._system, network, self._plan.env)
            try:
                for member in self._members.values():
                    member.start()
                self._fail()
                network.heal()
                healed = time.monotonic()
                self._converge()
                self._outcome.to_converge = time.monotonic() - healed
                self._outcome.ledger = audit(self._system.using)
                self._outcome.suspects = suspects(self._system.using)
            finally:
                for member in self._members.values():
                    member.kill()
        for member in self._members.values():
            self._outcome.ends += member.ends
        self._outcome.seconds = time.monotonic() - began
        return self._outcome

    def _fail(self) -> None:
        """Safety: whatever fails, the producers go on."""
        plan = self._plan
        waiting = plan.draw()
        lasting: dict[str, tuple[Fault, Iterator[None]]] = {}
        injector = Injector(self._members, self._system.broker, self._postgres, CLAIM_TIMEOUT)
        with Producers(plan.seed, rate=plan.rate, using=self._system.using) as producers:
            moved_at, moved = time.monotonic(), 0
            while waiting or lasting or producers.committed < plan.messages:
                producers.require_running()
                if self._enough.is_set():
                    waiting.clear()
                    if not lasting:
                        break
                self._begin(waiting, lasting, injector, producers)
                for victim in list(lasting):
                    if next(lasting[victim][1], self) is self:
                        del lasting[victim]
                self._supervise(producers)
                if producers.committed != moved:
                    moved_at, moved = time.monotonic(), producers.committed
                assert time.monotonic() < moved_at + STALLED, f"No commits: {lasting}, {waiting}"
                time.sleep(TICK)
        injector.close()

    def _begin(
        self,
        waiting: list[Fault],
        lasting: dict[str, tuple[Fault, Iterator[None]]],
        injector: Injector,
        producers: Producers,
    ) -> None:
        """Begin the next fault, once its moment has come and its victim is well."""
        if not waiting or len(lasting) >= AT_ONCE:
            return
        fault = waiting[0]
        if producers.committed < fault.after or fault.victim in lasting:
            return
        if lasting and (fault.alone or any(other.alone for other, _ in lasting.values())):
            return
        logger.info("%s", fault)
        lasting[fault.victim] = fault, injector.inject(waiting.pop(0))
        self._outcome.faults[f"{fault.role}: {fault.kind}"] += 1

    def _supervise(self, producers: Producers) -> None:
        for member in self._members.values():
            member.supervise()
        if time.monotonic() > self._look_at + LOOK:
            self._look_at = time.monotonic()
            if in_flight(self._system.using) > MOST_IN_FLIGHT:
                producers.held.set()
            else:
                producers.held.clear()

    def _converge(self) -> None:
        """Liveness: nothing fails, and everything ends, what is delivered twice included."""
        until = time.monotonic() + LIVENESS
        workers = [m for m in self._members.values() if m.role == "worker"]
        while time.monotonic() < until:
            if not self._comes_to_rest(until):
                return
            for worker in workers:
                worker.stop()
            # What they held without acknowledging it is back with the broker.
            if not self._system.undelivered():
                return
            for worker in workers:
                worker.start()

    def _comes_to_rest(self, until: float) -> bool:
        looks = 0
        while looks < LOOKS:
            for member in self._members.values():
                member.supervise()
            looks = looks + 1 if self._quiet() else 0
            if time.monotonic() > until:
                return False
            time.sleep(0.3)
        return True

    def _quiet(self) -> bool:
        try:
            return not in_flight(self._system.using) and not self._system.undelivered()
        except self._system.broker.errors:
            return False


def _told(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counter.items()))

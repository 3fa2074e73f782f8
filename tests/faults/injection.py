"""How each kind of fault is done and undone: a generator that yields while it lasts."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from django.db import connections

from sample_project.servers import children_of
from tests.faults.postgresql import crash
from tests.faults.schedule import Fault, Kind
from tests.faults.trail import note_held, settled_by, terminate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sample_project.servers import PostgresServer
    from tests.faults.members import Member
    from tests.servers.brokers import Broker

# Seconds within which a relay should have something in its claim: longer than its longest wait
# after an outage.
AIM = 20.0
# Messages that the broker shall have to lose: more than it may have back from the two workers,
# which have executed these and could not say so.
LOSS = 2 * 8 + 5

# Seconds that a fault lasts, from and to.
LASTING = {
    Kind.KILL: (0.0, 1.0),
    Kind.CUT_DATABASE: (0.2, 3.0),
    Kind.CUT_BROKER: (0.2, 3.0),
    Kind.HANG_DATABASE: (0.2, 5.0),
    Kind.HANG_BROKER: (0.2, 5.0),
}
# A relay until its claim has been taken over; a worker until Valkey may have handed on what it had.
PAUSED = {"relay": (1.3, 2.3), "worker": (0.3, 2.5), "broker": (0.1, 1.3)}


class Injector:
    """Does faults to the members and the servers of one run."""

    def __init__(
        self,
        members: Mapping[str, Member],
        broker: Broker,
        postgres: PostgresServer | None,
        claim_timeout: float,
    ) -> None:
        self._members = members
        self._broker = broker
        self._postgres = postgres
        self._claim_timeout = claim_timeout
        # A broker's start takes seconds, in which other faults go on.
        self._starts = ThreadPoolExecutor(1)

    def inject(self, fault: Fault) -> Iterator[None]:
        """Begin the fault, and undo it; yields while it waits."""
        if fault.victim == "postgresql":
            yield from self._restart(fault)
        elif fault.victim == "broker":
            yield from self._strike_broker(fault)
        else:
            yield from self._strike(fault, self._members[fault.victim])

    def close(self) -> None:
        self._starts.shutdown()

    def _strike(self, fault: Fault, member: Member) -> Iterator[None]:
        if fault.aimed:
            yield from self._aim(fault, member)
        if fault.kind is Kind.KILL:
            member.kill()
            self._let_go(fault, member)
            yield from self._last(fault)
            member.start()
        elif fault.kind is Kind.KILL_CHILD:
            self._kill_child(member)
        elif fault.kind is Kind.PAUSE:
            yield from self._pause(fault, member)
        elif fault.kind is Kind.TERMINATE:
            terminate(member.name)
            self._let_go(fault, member)
        else:
            yield from self._disturb(fault, member)

    def _aim(self, fault: Fault, relay: Member) -> Iterator[None]:
        """Have the relay publish into a link that hangs, until it holds a claim."""
        # Not one that is about to connect: it would claim nothing.
        before = settled_by(relay.name)
        yield from _until(lambda: settled_by(relay.name) > before, AIM)
        relay.broker.hang(answers_only=fault.sent)
        yield from _until(lambda: note_held(relay.name) > 0, AIM)

    @staticmethod
    def _let_go(fault: Fault, member: Member) -> None:
        """Let the link go on. What has not been sent by then never is, or it would be executed."""
        if fault.aimed and not fault.sent:
            member.broker.cut()
        member.broker.heal()

    def _pause(self, fault: Fault, member: Member) -> Iterator[None]:
        member.pause()
        self._let_go(fault, member)
        yield from self._last(fault)
        member.resume()

    def _disturb(self, fault: Fault, member: Member) -> Iterator[None]:
        to_broker = fault.kind in (Kind.CUT_BROKER, Kind.HANG_BROKER)
        link = member.broker if to_broker else member.database
        if fault.kind in (Kind.CUT_BROKER, Kind.CUT_DATABASE):
            link.cut()
        else:
            link.hang(answers_only=fault.sent)
        if not to_broker:
            member.broker.heal()
        yield from self._last(fault)
        link.heal()

    def _kill_child(self, worker: Member) -> None:
        process = worker.process
        assert process is not None
        children = children_of(process.pid)
        if children:
            os.kill(children[-1], signal.SIGKILL)

    def _restart(self, fault: Fault) -> Iterator[None]:
        postgres = self._postgres
        assert postgres is not None
        connections.close_all()
        if fault.kind is Kind.CRASH:
            crash(postgres)
        else:
            postgres.restart()
        yield

    def _strike_broker(self, fault: Fault) -> Iterator[None]:
        broker = self._broker
        if fault.kind is Kind.PAUSE:
            os.kill(broker.server.pid, signal.SIGSTOP)
            try:
                yield from self._last(fault)
            finally:
                os.kill(broker.server.pid, signal.SIGCONT)
        elif fault.kind is Kind.KILL:
            broker.flush()
            broker.server.kill()
            yield from self._last(fault)
            yield from self._in_background(broker.server.start)
        else:
            yield from self._lose(fault)

    def _lose(self, fault: Fault) -> Iterator[None]:
        """Keep messages from the workers, until the broker has some to lose."""
        workers = [m for m in self._members.values() if m.role == "worker"]
        for worker in workers:
            worker.broker.hang()
        yield from _until(self._has_something_to_lose, AIM)
        if fault.kind is Kind.WIPE:
            yield from self._in_background(self._broker.wipe)
        elif self._has_something_to_lose():
            self._broker.purge()
        for worker in workers:
            worker.broker.heal()

    def _has_something_to_lose(self) -> bool:
        try:
            return self._broker.queue_length() >= LOSS
        except self._broker.errors:
            return False

    def _in_background(self, work: Callable[[], object]) -> Iterator[None]:
        done = self._starts.submit(work)
        while not done.done():
            yield
        done.result()

    def _last(self, fault: Fault) -> Iterator[None]:
        if fault.kind is Kind.PAUSE:
            low, high = (each * self._claim_timeout for each in PAUSED[fault.role])
        else:
            low, high = LASTING[fault.kind]
        until = time.monotonic() + low + fault.share * (high - low)
        while time.monotonic() < until:
            yield


def _until(condition: Callable[[], bool], seconds: float) -> Iterator[None]:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        yield

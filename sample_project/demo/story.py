"""What happens in the demo, in order."""

from __future__ import annotations

import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from sample_project.demo import ledger
from sample_project.demo.client import Clients
from sample_project.demo.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_project.demo.cast import Cast
    from sample_project.demo.ledger import Ledger
    from sample_project.demo.progress import Progress

TICK = 0.1
QUIET_FOR = 1.0
GIVE_UP_AFTER = 60.0


class Stalled(Exception):
    """Nothing has moved for a minute; the message says what was awaited."""


class Story:
    """Places orders, delivers each message twice, kills the worker and the relay."""

    def __init__(self, cast: Cast, port: int, orders: int, progress: Progress) -> None:
        self._cast = cast
        self._port = port
        self._orders = orders
        self._progress = progress
        self._since = ledger.database_clock()
        self._clients = Clients(port)
        self._network = Network(self._since)
        self._busy_at = time.monotonic()
        self.ledger = ledger.read(self._since)

    def play(self) -> None:
        """Play it to the end, when the broker has nothing more to deliver.

        Raises ``Stalled``, ``ProcessEnded`` or ``OrderRefused``.
        """
        try:
            self._cast.start("web server", "worker", "relay")
            self._until(self._web_answers, "the web server answers")
            self._progress.say(f"Placing {self._orders} orders over HTTP.")
            self._kill_the_worker()
            self._kill_the_relay()
            self._until(self._is_done, "every message is executed and every duplicate delivered")
        finally:
            self._clients.close()
            self._network.close()

    @property
    def repeats(self) -> int:
        """How often a message was published once more, past the relay."""
        return self._network.repeats

    @property
    def accepted(self) -> int:
        """How many orders the web server has accepted."""
        return self._clients.accepted

    def _kill_the_worker(self) -> None:
        half = self._orders // 2
        self._clients.place(half)
        self._until(lambda: self.ledger.executed >= half // 4 + 1, "the worker executes messages")
        pid = self._cast.pid("worker")
        self._cast.kill("worker")
        self._progress.say(f"The worker (pid {pid}) is killed with SIGKILL.")
        self._until(lambda: not self._clients.waiting, "orders are accepted without a worker")
        self._tick()
        self._cast.start("worker")
        waiting = self.ledger.messages - self.ledger.executed
        self._progress.say(f"{waiting} messages wait for it. A new worker starts.")

    def _kill_the_relay(self) -> None:
        placed = self._orders // 2
        rest = self._orders - placed
        self._clients.place(rest)
        self._until(lambda: self.accepted > placed + rest // 4, "orders are accepted")
        pid = self._cast.pid("relay")
        self._cast.kill("relay")
        self._progress.say(f"The relay (pid {pid}) is killed with SIGKILL.")
        self._until(lambda: not self._clients.waiting, "orders are accepted without a relay")
        self._tick()
        self._cast.start("relay")
        waiting = self.ledger.messages - self.ledger.published
        self._progress.say(f"{waiting} messages wait for it, committed. A new relay starts.")

    def _is_done(self) -> bool:
        if not self._network.is_quiet():
            self._busy_at = time.monotonic()
        # Nobody here looks after a message that is not executed: that is the relay's work.
        if self.ledger.executed < self.ledger.messages:
            return False
        if time.monotonic() - self._busy_at < QUIET_FOR:
            return False
        single = self._network.repeat_single()
        if single:
            self._busy_at = time.monotonic()
            self._progress.say(
                f"{single} executed messages came only once: the worker that was killed had their "
                "duplicates. The network delivers these once more."
            )
        return not single

    def _web_answers(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            return False
        finally:
            connection.close()
        return True

    def _until(self, condition: Callable[[], bool], awaited: str) -> None:
        moved_at = time.monotonic()
        while not condition():
            before = self.ledger, self.accepted
            time.sleep(TICK)
            self._tick()
            if before != (self.ledger, self.accepted):
                moved_at = time.monotonic()
            if time.monotonic() - moved_at > GIVE_UP_AFTER:
                raise Stalled(f"Nothing has moved for {GIVE_UP_AFTER:.0f} s; awaited: {awaited}")

    def _tick(self) -> None:
        self._cast.check()
        self._network.repeat()
        now: Ledger = ledger.read(self._since)
        if now.deliveries != self.ledger.deliveries:
            self._busy_at = time.monotonic()
        self.ledger = now
        if now.orders:
            self._show(now)

    def _show(self, now: Ledger) -> None:
        self._progress.update(
            f"orders {now.orders}/{self._orders}  published {now.published}"
            f"  deliveries {now.deliveries}  receipts {now.receipts}  payments {now.payments}"
            f"  suppressed {now.suppressed}  doubled {now.doubled}"
        )

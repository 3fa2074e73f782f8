"""The relays and workers of a run, each on links of its own, and their supervisor."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.servers.children import database_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sample_project.processes import Process
    from tests.faults.network import Network
    from tests.faults.system import System

RESTART = 0.5  # seconds between the end of a process and its next start


class Member:
    """One relay or worker by its name: started, killed and started again."""

    def __init__(
        self, name: str, system: System, network: Network, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.role = name.partition("-")[0]
        self.database = network.link(database_url(system.using))
        self.broker = network.link(system.broker.url)
        self.process: Process | None = None
        # Whether its supervisor is to keep it running.
        self.wanted = False
        self.ends: Counter[str] = Counter()
        self._system = system
        self._ended_at: float | None = None
        self._env = {
            **(env or {}),
            "DATABASE_URL": self.database.url,
            "CELERY_BROKER_URL": self.broker.url,
            # By that name PostgreSQL knows its sessions.
            "PGAPPNAME": name,
        }

    def start(self) -> None:
        if self.role == "relay":
            self.process = self._system.start_relay(env=self._env)
        else:
            self.process = self._system.start_worker(ready=False, concurrency=2, env=self._env)
        self.wanted = True

    def kill(self) -> None:
        self.wanted = False
        if self.process is not None:
            self.process.kill()

    def pause(self) -> None:
        """Freeze it, as a paused virtual machine is."""
        if self.process is not None:
            self.process.stop_signal()

    def resume(self) -> None:
        if self.process is not None:
            self.process.cont_signal()

    def is_ready(self) -> bool:
        """Whether a relay has begun to look for messages."""
        return "Relaying" in self.output()

    def output(self) -> str:
        return self.process.output() if self.process is not None else ""

    def stop(self) -> None:
        """Have it end in good order."""
        self.wanted = False
        if self.process is not None:
            self.process.stop()

    def supervise(self) -> None:
        """Start it again if it has ended by itself; keep note of it."""
        if not self.wanted or self.process is None or self.process.running:
            return
        if self._ended_at is None:
            self._ended_at = time.monotonic()
            # A relay that finds no database at its start says so and ends.
            began = self.role == "worker" or self.is_ready()
            self.ends[self.role if began else f"{self.role}, at its start"] += 1
        elif time.monotonic() > self._ended_at + RESTART:
            self._ended_at = None
            self.start()

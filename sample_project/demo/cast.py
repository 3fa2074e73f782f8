"""The processes on the stage: a web server, a relay and a worker, as one would run them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sample_project.processes import Process

ROOT = Path(__file__).resolve().parents[2]
MANAGE = [sys.executable, str(ROOT / "manage.py")]
WORKER = [sys.executable, "-m", "celery", "--app", "sample_project", "worker", "--concurrency", "2"]


class ProcessEnded(Exception):
    """A process ended by itself; the message has the end of its log."""


class Cast:
    """Starts, kills and stops the demo's processes. ``logs`` is where they write."""

    def __init__(self, logs: Path, environment: dict[str, str], port: int) -> None:
        self.logs = logs
        self._environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self._arguments = {
            "web server": [*MANAGE, "runserver", "--noreload", "--insecure", f"127.0.0.1:{port}"],
            "relay": [*MANAGE, "outbox_relay"],
            "worker": [*WORKER, "--loglevel", "INFO", "--without-gossip", "--without-mingle"],
        }
        self._processes: dict[str, Process] = {}

    def start(self, *roles: str) -> None:
        for role in roles:
            self._processes[role] = Process(
                self._arguments[role],
                log=self.logs / f"{role.replace(' ', '-')}.log",
                env=self._environment,
                cwd=ROOT,
            )

    def pid(self, role: str) -> int:
        return self._processes[role].pid

    def kill(self, role: str) -> None:
        """SIGKILL the process, and with a worker its pool."""
        self._processes.pop(role).kill()

    def check(self) -> None:
        """Raise ``ProcessEnded`` if one of them ended that was not killed."""
        for role, process in self._processes.items():
            if not process.running:
                end = process.output()[-2000:]
                raise ProcessEnded(f"The {role} ended with status {process.returncode}:\n{end}")

    def stop(self) -> None:
        """Ask all of them to end, then wait for each."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.stop(timeout=10)
        self._processes.clear()

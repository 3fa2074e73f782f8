"""Workers and relays as real processes of the test project."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from django.db import connections

from sample_project.processes import Process
from tests.helpers import wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]


def database_url(using: str = "default") -> str:
    """The address of the *test* database, for a process other than this one."""
    at = connections[using].settings_dict
    credentials = f"{quote(str(at['USER']))}:{quote(str(at['PASSWORD']))}"
    return f"postgres://{credentials}@{at['HOST']}:{at['PORT']}/{at['NAME']}"


class Children:
    """Starts processes of the test project and ends them, each by its pid.

    Their logs are files in ``directory``.
    """

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self._directory = directory
        self._env = env
        self._processes: list[Process] = []

    def start(self, kind: str, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Start ``python -m <arguments>``; ``env`` is added to the project's environment."""
        process = Process(
            [sys.executable, "-m", *arguments],
            log=self._directory / f"{kind}-{len(self._processes)}.log",
            cwd=ROOT,
            env={
                **os.environ,
                "DATABASE_URL": database_url(),
                "PYTHONUNBUFFERED": "1",
                **self._env,
                **(env or {}),
            },
        )
        self._processes.append(process)
        return process

    def start_worker(
        self,
        *arguments: str,
        concurrency: int = 1,
        pool: str = "prefork",
        queues: str = "celery",
        loglevel: str = "INFO",
        ready: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a Celery worker; return when it consumes, at once with ``ready=False``."""
        process = self.start(
            "worker",
            "celery",
            "--app=tests.project",
            "worker",
            f"--hostname=worker{len(self._processes)}@localhost",
            f"--concurrency={concurrency}",
            f"--pool={pool}",
            f"--queues={queues}",
            f"--loglevel={loglevel}",
            "--without-gossip",
            "--without-mingle",
            *arguments,
            env=env,
        )
        if ready:
            wait_for(
                lambda: " ready." in process.output() or not process.running,
                timeout=60,
                message=lambda: f"The worker is not ready: {process.output()}",
            )
            assert process.running, process.output()
        return process

    def start_relay(self, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Start ``outbox_relay``; ``wait()`` returns its exit status."""
        return self.start("relay", "django", "outbox_relay", *arguments, env=env)

    def end(self) -> None:
        """SIGKILL whatever still runs."""
        for process in self._processes:
            process.kill()

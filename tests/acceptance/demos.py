"""``manage.py demo`` as a process, and what it leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sample_project.processes import Process
from sample_project.servers import children_of
from tests.helpers import wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
# What a test run sets for itself, and a person who types the command has not.
OURS = ("DATABASE_URL", "CELERY_BROKER_URL", "DJANGO_SETTINGS_MODULE")


@dataclass
class Demo:
    """A demo that runs, or has ended."""

    process: Process

    @property
    def output(self) -> str:
        return self.process.output()

    def wait_for(self, text: str, *, timeout: float = 300) -> None:
        """Wait until it has said ``text``; fail when it ends before."""
        wait_for(
            lambda: text in self.output or not self.process.running,
            timeout=timeout,
            message=lambda: f"The demo did not say {text!r}:\n{self.output}",
        )
        assert text in self.output, self.output

    def end(self) -> None:
        """SIGKILL it if it still runs; remove the logs that it keeps when it fails."""
        self.process.kill()
        logs = re.search(r"write their logs to (/\S+/demo-\w+)\.", self.output)
        if logs:
            shutil.rmtree(logs[1], ignore_errors=True)

    def figure(self, label: str) -> int:
        """A number of its ledger."""
        found = re.search(rf"^ *{re.escape(label)} +(\d+)", self.output, re.MULTILINE)
        assert found, f"no {label!r} in:\n{self.output}"
        return int(found[1])

    def found(self, pattern: str) -> str:
        """The first group of ``pattern`` in what it has said."""
        match = re.search(pattern, self.output)
        assert match, f"no {pattern!r} in:\n{self.output}"
        return match[1]


def start_demo(log: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Demo:
    """Start ``manage.py demo`` with nothing of this test run in its environment but ``env``."""
    inherited = {name: value for name, value in os.environ.items() if name not in OURS}
    return Demo(
        Process(
            [sys.executable, ROOT / "manage.py", "demo", *arguments],
            log=log,
            cwd=ROOT,
            env={**inherited, **(env or {})},
        )
    )


def descendants(pid: int) -> list[int]:
    """The process ids below ``pid``, as long as nobody ends."""
    found = []
    for child in children_of(pid):
        found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"

"""Child processes that never outlive the process that started them."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Reads "<process group> <signal>" lines (signal 0: forget it) until its parent closes the pipe,
# which the kernel does for it however the parent dies. PR_SET_PDEATHSIG would do on Linux, but it
# fires when the *thread* that started the child ends.
_GUARD = """
import os, sys
groups = {}
for line in sys.stdin:
    group, number = map(int, line.split())
    groups.pop(group, None)
    if number:
        groups[group] = number
for group, number in reversed(groups.items()):
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass
"""


class Process:
    """A child process in a session of its own, so Ctrl-C in the terminal reaches only its parent.

    Signals go to the whole process group: a Celery worker is its pool too. Output is appended to
    ``log``. ``user`` (root only) is the account to run as. Whatever is still alive when this
    Python process ends, by whatever signal, gets ``last_signal``.
    """

    _guard: ClassVar[IO[str] | None] = None
    _guard_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        user: str | None = None,
        last_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
                **account(user),
            )
        self._guarded(last_signal)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while the process runs."""
        return self._popen.poll()

    @property
    def running(self) -> bool:
        return self.returncode is None

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process group; a process that has ended is left alone."""
        if self.running:
            os.killpg(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def stop_signal(self) -> None:
        """Freeze the process, as a paused virtual machine does."""
        self.send_signal(signal.SIGSTOP)

    def cont_signal(self) -> None:
        """Let a frozen process go on."""
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the process group and wait until the process has ended."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Wait up to ``timeout`` seconds for the end; return the exit status.

        Raises ``subprocess.TimeoutExpired``.
        """
        status = self._popen.wait(timeout)
        self._guarded(None)
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM, *, timeout: float = 30) -> int:
        """Ask the process to end, SIGKILL it after ``timeout`` seconds; return the exit status."""
        self.send_signal(number)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()

    def output(self) -> str:
        """Everything written so far."""
        return self.log.read_text(errors="replace")

    def _guarded(self, last_signal: signal.Signals | None) -> None:
        with Process._guard_lock:
            if Process._guard is None:
                Process._guard = _start_guard()
            Process._guard.write(f"{self.pid} {int(last_signal or 0)}\n")
            Process._guard.flush()


def account(user: str | None) -> dict[str, Any]:
    """Arguments that make ``subprocess`` run a program as ``user``; None: as whoever we are."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _start_guard() -> IO[str]:
    read_end, write_end = os.pipe()
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD],
        stdin=read_end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    os.close(read_end)
    # It outlives us on purpose: without a status Popen would warn of that when we exit.
    guard.returncode = 0
    return os.fdopen(write_end, "w")

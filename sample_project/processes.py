"""Child processes that never outlive the process that started them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Takes one order a line until its parent closes the pipe, which the kernel does for it however the
# parent dies. PR_SET_PDEATHSIG would do on Linux, but fires when the *thread* that started the
# child ends.
_GUARD = """
import os, shutil, sys, time
groups, directories = {}, set()
for line in sys.stdin:
    order, _, value = line.rstrip("\\n").partition(" ")
    if order == "kill":
        group, _, number = value.partition(" ")
        groups[int(group)] = int(number)
    elif order == "spare":
        groups.pop(int(value), None)
    elif order == "remove":
        directories.add(value)
    elif order == "keep":
        directories.discard(value)

def signal(group, number):
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True

for group, number in reversed(groups.items()):
    signal(group, number)
deadline = time.monotonic() + 5
while time.monotonic() < deadline and any(signal(group, 0) for group in groups):
    time.sleep(0.05)
for directory in directories:
    shutil.rmtree(directory, ignore_errors=True)
"""


class _Guard:
    """Does what is left to do when this process has ended, by whatever signal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipe: int | None = None

    def tell(self, order: str) -> None:
        with self._lock:
            if self._pipe is None:
                self._pipe = self._start()
            os.write(self._pipe, f"{order}\n".encode())

    def _start(self) -> int:
        read_end, write_end = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD],
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        os.close(read_end)
        # It outlives us on purpose: without a status Popen would warn of that when we exit.
        process.returncode = 0
        return write_end


_guard = _Guard()


class Process:
    """A child process in a session of its own, so Ctrl-C in the terminal reaches only its parent.

    Signals go to the whole process group: a Celery worker is its pool too. Output is appended to
    ``log``. ``user`` (root only) is the account to run as. Whatever is still alive when this
    Python process ends, by whatever signal, gets ``last_signal``.
    """

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
        _guard.tell(f"kill {self.pid} {last_signal:d}")

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

    @property
    def stopped(self) -> bool:
        """Whether a signal has frozen the process."""
        how = os.WSTOPPED | os.WNOWAIT | os.WNOHANG
        return self.running and os.waitid(os.P_PID, self.pid, how) is not None

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
        _guard.tell(f"spare {self.pid}")
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


def account(user: str | None) -> dict[str, Any]:
    """Arguments that make ``subprocess`` run a program as ``user``; None: as whoever we are."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def temporary_directory(prefix: str) -> Path:
    """A new directory that is removed when this process has ended, if it is still there."""
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    _guard.tell(f"remove {directory}")
    return directory


def remove_directory(directory: Path) -> None:
    """Remove a temporary directory now."""
    shutil.rmtree(directory, ignore_errors=True)
    _guard.tell(f"keep {directory}")

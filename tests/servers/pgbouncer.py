"""PgBouncer from the system's package, in transaction mode, before the tests' PostgreSQL."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from sample_project.processes import Process
from sample_project.servers import Server, ServerMissing, unprivileged_user

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM = Path("/usr/sbin/pgbouncer")
SESSIONS = 5


class PgBouncer(Server):
    """Gives each transaction the next one of five sessions, so that none can lean on its session.

    ``at``: Django's settings of the database behind it. Every database of that server is there.
    """

    name = "PgBouncer"

    def __init__(self, at: Mapping[str, Any], directory: Path | None = None) -> None:
        if not PROGRAM.exists():
            raise ServerMissing("PgBouncer is missing: apt-get install pgbouncer")
        super().__init__(directory)
        self.user = unprivileged_user() if os.geteuid() == 0 else None
        self._at = dict(at)

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The address, with the settings that docs/production.md asks for."""
        credentials = f"{self._at['USER']}:{self._at['PASSWORD']}"
        at = f"127.0.0.1:{self.port}/{database}"
        return f"postgres://{credentials}@{at}?DISABLE_SERVER_SIDE_CURSORS=true"

    def _launch(self) -> Process:
        users = self.directory / "users.txt"
        configuration = self.directory / "pgbouncer.ini"
        for path in (users, configuration):
            path.touch(mode=0o600)
        users.write_text(f'"{self._at["USER"]}" "{self._at["PASSWORD"]}"\n')
        configuration.write_text(
            "[databases]\n"
            f"* = host={self._at['HOST']} port={self._at['PORT']}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\n"
            "unix_socket_dir =\n"
            "auth_type = scram-sha-256\n"
            f"auth_file = {users}\n"
            "pool_mode = transaction\n"
            f"default_pool_size = {SESSIONS}\n"
            f"min_pool_size = {SESSIONS}\n"
            "server_round_robin = 1\n"
            "query_wait_timeout = 20\n"
        )
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            for path in (self.directory, users, configuration):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        return Process([PROGRAM, configuration], log=self.log, cwd="/", user=self.user)

    def _answers(self) -> bool:
        try:
            with psycopg.connect(
                host="127.0.0.1",
                port=self.port,
                user=self._at["USER"],
                password=self._at["PASSWORD"],
                dbname="postgres",
                connect_timeout=5,
            ):
                return True
        except psycopg.OperationalError:
            return False

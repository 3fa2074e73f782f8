"""RabbitMQ from the system's package, with everything it writes in a directory of ours."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any, ClassVar

import amqp

from sample_project.processes import Process
from sample_project.servers import Server, ServerMissing, free_port

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # not the wrapper, which changes the user


class RabbitMQ(Server):
    """A RabbitMQ node that shares nothing with the system's own.

    ``configuration`` are lines of rabbitmq.conf (``["max_message_size = 1048576"]``), read at each
    start. The management plugin is on, without its statistics, because a virtual host through its
    HTTP API takes 40 ms and through rabbitmqctl 700 ms.
    """

    name = "RabbitMQ"
    start_timeout: ClassVar[float] = 120

    def __init__(self, directory: Path | None = None, *, configuration: Iterable[str] = ()) -> None:
        if not PROGRAM.exists() or which("epmd") is None:
            raise ServerMissing("RabbitMQ is missing: apt-get install rabbitmq-server")
        super().__init__(directory)
        self.configuration = list(configuration)
        self._management_port = free_port()
        self._distribution_port = free_port()
        self._epmd_port = free_port()
        self._epmd: Process | None = None
        self._password = secrets.token_hex(12)
        cookie = self.directory / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(12))
            cookie.chmod(0o400)

    @property
    def url(self) -> str:
        return self.url_of("/")

    def url_of(self, vhost: str) -> str:
        name = "" if vhost == "/" else vhost
        return f"amqp://test:{self._password}@127.0.0.1:{self.port}/{name}"

    def create_vhost(self, vhost: str) -> str:
        """Create a virtual host; return its URL."""
        self.api("PUT", f"vhosts/{vhost}")
        self.permit(vhost)
        return self.url_of(vhost)

    def delete_vhost(self, vhost: str) -> None:
        self.api("DELETE", f"vhosts/{vhost}")

    def flush(self) -> None:
        """Have every queue that was declared on disk.

        RabbitMQ before 4 (Mnesia) answers a declaration first and logs its outcome afterwards.
        Killed in between, it comes back without the queue, and without what it confirmed for it.
        Each change of a definition flushes those before it.
        """
        self.permit("%2F")

    def wipe(self) -> None:
        """SIGKILL it and delete its data: the next start knows no virtual host and no queue."""
        self.kill()
        shutil.rmtree(self.directory / "mnesia")

    def permit(self, vhost: str, name: str = "test", write: str = ".*") -> None:
        """Let a user do everything on the virtual host, or publish to some exchanges only."""
        permissions = {"configure": ".*", "write": write, "read": ".*"}
        self.api("PUT", f"permissions/{vhost}/{name}", permissions)

    def ctl(self, *arguments: str) -> None:
        """Run ``rabbitmqctl``."""
        finished = subprocess.run(
            [PROGRAM.with_name("rabbitmqctl"), *arguments],
            env=self._environment(),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if finished.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments[0]} failed: {finished.stderr}")

    def create_user(self, name: str, password: str, vhost: str) -> None:
        """Create a user who may do everything on the virtual host; or change the password."""
        self.api("PUT", f"users/{name}", {"password": password, "tags": ""})
        self.permit(vhost, name)

    def forbid(self, vhost: str, name: str) -> None:
        """Take a user's permissions on the virtual host away."""
        self.api("DELETE", f"permissions/{vhost}/{name}")

    def delete_user(self, name: str) -> None:
        self.api("DELETE", f"users/{name}")

    @contextmanager
    def out_of_memory(self) -> Iterator[None]:
        """Raise the memory alarm: connections that publish are blocked until the block ends."""
        self.ctl("set_vm_memory_high_watermark", "absolute", "1")
        try:
            yield
        finally:
            self.ctl("set_vm_memory_high_watermark", "0.4")

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API; return the decoded answer, None for an empty one."""
        credentials = b64encode(f"test:{self._password}".encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._management_port}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def stop(self) -> None:
        super().stop()
        self._end_epmd()

    def close(self) -> None:
        # The data go away: no need for the six seconds of a shutdown in good order.
        if self._temporary:
            self.kill()
            self._end_epmd()
        super().close()

    def _launch(self) -> Process:
        if self._epmd is None or not self._epmd.running:
            self._epmd = Process(
                ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                log=self.directory / "epmd.log",
                cwd=self.directory,
            )
        (self.directory / "enabled_plugins").write_text("[rabbitmq_management].")
        configuration = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {self._management_port}",
            "management_agent.disable_metrics_collector = true",
            "default_user = test",
            f"default_pass = {self._password}",
            "default_user_tags.administrator = true",
            "log.console = true",
            "log.console.level = warning",
            "log.file = false",
            "disk_free_limit.absolute = 50MB",
            *self.configuration,
        ]
        path = self.directory / "rabbitmq.conf"
        path.touch(mode=0o600)
        path.write_text("\n".join(configuration) + "\n")
        # ALLOW_INPUT makes the script become the Erlang machine, so that pid is the server's.
        return Process(
            [PROGRAM, "-noinput"], log=self.log, cwd=self.directory, env=self._environment()
        )

    def _environment(self) -> dict[str, str]:
        base = self.directory
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(base),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(base / "absent.conf"),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "absent.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(base / "mnesia"),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_PID_FILE": str(base / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _answers(self) -> bool:
        connection = amqp.Connection(
            f"127.0.0.1:{self.port}",
            userid="test",
            password=self._password,
            connect_timeout=5,
            read_timeout=5,
        )
        try:
            connection.connect()
            connection.close()
            self.api("GET", "overview")
        except (OSError, amqp.AMQPError, urllib.error.URLError):
            return False
        finally:
            connection.collect()  # a refused handshake leaves the socket open
        return True

    def _end_epmd(self) -> None:
        if self._epmd is not None:
            self._epmd.kill()

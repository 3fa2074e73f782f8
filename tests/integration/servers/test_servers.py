"""The servers that the other tests stand on: what they took survives SIGKILL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis
from kombu import Connection

from sample_project.servers import PostgresServer, ServerMissing, ValkeyServer
from tests.helpers import wait_for
from tests.servers.missing import missing

if TYPE_CHECKING:
    from tests.servers.rabbitmq import RabbitMQ


@pytest.mark.database
def test_postgres_keeps_what_it_committed() -> None:
    try:
        server = PostgresServer(bin_directory=os.environ.get("TEST_POSTGRES_BIN") or None)
    except ServerMissing as error:
        missing(str(error))
    with server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 'before' AS value")
        first = server.pid
        with psycopg.connect(server.url) as connection:
            server.kill()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        server.start()
        assert server.pid != first
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchall() == [("before",)]
        server.restart()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchall() == [("before",)]
    assert not server.directory.exists()


def test_postgres_says_what_its_directory_lacks(tmp_path: Path) -> None:
    with pytest.raises(ServerMissing, match=str(tmp_path)):
        PostgresServer(bin_directory=tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root runs PostgreSQL as somebody else")
def test_postgres_runs_from_where_its_user_may_not_read(tmp_path: Path) -> None:
    try:
        original = PostgresServer(tmp_path / "unused").bin_directory.parent
    except ServerMissing as error:
        missing(str(error))
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    for folder in original.parent.parent.glob(f"{original.parent.name}*"):
        if not folder.name.endswith(".dist-info"):
            shutil.copytree(folder, hidden / folder.name, copy_function=os.link)
    programs = hidden / original.parent.name / original.name / "bin"
    with (
        PostgresServer(bin_directory=programs) as server,
        psycopg.connect(server.url) as connection,
    ):
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_valkey_keeps_what_it_answered(valkey: ValkeyServer) -> None:
    _keeps_what_it_answered(valkey)


def test_redis_keeps_what_it_answered(redis_server: ValkeyServer) -> None:
    _keeps_what_it_answered(redis_server)


def _keeps_what_it_answered(server: ValkeyServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set("kept", "before")
    server.kill()
    assert not server.running
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"before"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    server.restart()
    with redis.Redis.from_url(server.url) as client:
        assert client.getdel("kept") == b"before"


def test_rabbitmq_keeps_what_it_confirmed(rabbitmq: RabbitMQ) -> None:
    url = rabbitmq.create_vhost("kept")
    try:
        with Connection(url, transport_options={"confirm_publish": True}) as connection:
            queue = connection.SimpleQueue("kept", serializer="json")
            queue.put({"value": "before"})
        first = rabbitmq.pid
        rabbitmq.kill()
        rabbitmq.start()
        assert rabbitmq.pid != first
        with Connection(url) as connection:
            message = connection.SimpleQueue("kept").get(timeout=10)
            assert message.payload == {"value": "before"}
            message.ack()
    finally:
        rabbitmq.delete_vhost("kept")


def test_servers_end_with_the_process_that_started_them() -> None:
    code = (
        "import time\n"
        "from sample_project.servers import ValkeyServer\n"
        "server = ValkeyServer().start()\n"
        "print(server.pid, server.directory, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, _, directory = parent.stdout.readline().strip().partition(" ")
        assert _alive(int(pid))
        assert Path(directory).is_dir()
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not _alive(int(pid)), message="The server outlives its parent")
    wait_for(lambda: not Path(directory).exists(), message="The server leaves its data behind")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

"""``manage.py outbox_relay`` as a process: exit status, signals, and one line for what is wrong."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, transaction

from outbox.models import OutboxMessage
from tests.helpers import wait_for
from tests.project import tasks
from tests.servers.children import database_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_project.processes import Process
    from tests.servers.brokers import Broker

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.parametrize("broker", ["valkey"], indirect=True),
]

record: Any = tasks.record
messages = OutboxMessage.objects
PRODUCTION = Path(__file__).parents[3] / "docs" / "production.md"


def enqueue(number: int = 1, using: str = "default") -> None:
    with transaction.atomic(using=using):
        messages.enqueue_many([record.s("x")] * number, using=using)


def last_line(process: Process) -> str:
    return process.output().strip().splitlines()[-1]


def relaying(process: Process) -> bool:
    assert process.running, process.output()
    return "Relaying messages" in process.output()


def assert_nothing_is_locked() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM outbox_outboxmessage FOR UPDATE NOWAIT")
        cursor.fetchall()


def test_once_drains_and_leaves(broker: Broker, start_relay: Callable[..., Process]) -> None:
    enqueue(3)
    enqueue(2, using="other")
    default, other = start_relay("--once"), start_relay("--once", "--database", "other")
    assert (default.wait(60), other.wait(60)) == (0, 0)
    assert last_line(default) == "published 3, refused for now 0, dead 0, expired 0"
    assert last_line(other) == "published 2, refused for now 0, dead 0, expired 0"
    assert broker.queue_length() == 5


def test_what_is_wrong_is_one_clear_line_and_a_status(
    broker: Broker, start_relay: Callable[..., Process]
) -> None:
    enqueue()
    url = database_url()
    server = url.rpartition("/")[0]
    wrong = {
        "does not exist": {"DATABASE_URL": f"{server}/nowhere"},
        "failed: Connection refused": {"DATABASE_URL": "postgres://u:p@127.0.0.1:1/nowhere"},
        "password authentication failed": {
            "DATABASE_URL": url.replace("postgres://", "postgres://stranger", 1)
        },
        "no connection to the broker at redis://": {"CELERY_BROKER_URL": "redis://127.0.0.1:1"},
        "outbox.E002": {"CELERY_BROKER_URL": "amqp://127.0.0.1:1", "TEST_UNCONFIRMED": "1"},
        "There is no database 'absent'": {},
    }
    started = {
        told: start_relay(
            "--once", *(["--database", "absent"] if "absent" in told else []), env=env
        )
        for told, env in wrong.items()
    }
    for told, process in started.items():
        assert process.wait(60) == 1, process.output()
        output = process.output().strip()
        assert told in output
        assert "Traceback" not in output
        if told != "outbox.E002":  # Django's own form: what is wrong, and a hint
            (line,) = [line for line in output.splitlines() if line]
            assert line.startswith("CommandError: ")
    assert set(messages.values_list("status", "attempts")) == {("pending", 0)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_in_good_order(
    number: signal.Signals, broker: Broker, start_relay: Callable[..., Process]
) -> None:
    relay = start_relay()
    wait_for(lambda: relaying(relay))
    enqueue()
    wait_for(lambda: broker.queue_length() == 1)
    # In the middle of more than it can do before it hears of it.
    enqueue(2000)
    wait_for(messages.exclude(published_at=None).exists)
    relay.send_signal(number)
    assert relay.wait(30) == 0, relay.output()
    assert last_line(relay) == "Stopped."
    assert "Traceback" not in relay.output()
    assert_nothing_is_locked()
    # What it had published by then is settled: nothing is published twice.
    assert broker.queue_length() == messages.published().count()
    assert not messages.exclude(status__in=["pending", "published"]).exists()


def test_a_signal_ends_it_while_the_broker_is_away(
    broker: Broker, start_relay: Callable[..., Process]
) -> None:
    enqueue(3)
    relay = start_relay(env={"CELERY_BROKER_URL": "redis://127.0.0.1:1"})
    wait_for(lambda: "The broker is unavailable" in relay.output(), message=relay.output)
    relay.terminate()
    assert relay.wait(30) == 0, relay.output()
    assert relay.output().count("unavailable") == 1
    assert last_line(relay) == "Stopped."
    assert_nothing_is_locked()
    assert set(messages.values_list("status", "attempts")) == {("pending", 0)}


def ended_by_another(relay: Process) -> bool:
    """Send a signal more: one that comes before the first is handled is not a second one."""
    relay.terminate()
    return not relay.running


def test_a_second_signal_ends_it_at_once(
    broker: Broker, start_relay: Callable[..., Process]
) -> None:
    relay = start_relay()
    enqueue()
    wait_for(lambda: broker.queue_length() == 1, message=relay.output)
    server: Any = broker.server
    frozen: Any = server._process
    frozen.stop_signal()
    try:
        enqueue(3)
        wait_for(is_held, message=relay.output)
        relay.terminate()
        assert relay.running
        assert is_held()

        wait_for(lambda: ended_by_another(relay), timeout=5)
        assert relay.wait(5) == 128 + signal.SIGTERM
    finally:
        frozen.cont_signal()
    wait_for(lambda: not is_held())
    assert_nothing_is_locked()


# Several databases


BOTH = ("--database", "default", "--database", "other")
NOWHERE = "postgres://u:p@127.0.0.1:1/nowhere"


def test_one_process_relays_several_databases(
    broker: Broker, start_relay: Callable[..., Process]
) -> None:
    relay = start_relay(*BOTH)
    for using in ("default", "other", "default", "other"):
        before = broker.queue_length()
        enqueue(3, using)
        wait_for(lambda: broker.queue_length() == before + 3, message=relay.output)  # noqa: B023
    relay.terminate()
    assert relay.wait(30) == 0, relay.output()
    assert last_line(relay) == "Stopped."
    for using in ("default", "other"):
        assert f"Relaying messages of database '{using}'." in relay.output()
        assert messages.using(using).published().count() == 6


@pytest.mark.parametrize("away", ["default", "other"])
def test_an_alias_that_is_not_there_does_not_stop_another(
    away: str, broker: Broker, start_relay: Callable[..., Process]
) -> None:
    """Nothing asks the one that is away for what belongs to the other, whichever that is."""
    there = "other" if away == "default" else "default"
    urls = {"DATABASE_URL": database_url(), "OTHER_DATABASE_URL": database_url("other")}
    name = "DATABASE_URL" if away == "default" else "OTHER_DATABASE_URL"
    relay = start_relay(*BOTH, env={**urls, name: NOWHERE})
    wait_for(lambda: "is unavailable: " in relay.output(), message=relay.output)
    enqueue(3, there)
    wait_for(lambda: broker.queue_length() == 3, message=relay.output)
    wait_for(lambda: messages.using(there).published().count() == 3)
    relay.terminate()
    assert relay.wait(30) == 0, relay.output()
    assert relay.output().count("is unavailable: ") == 1
    alone = start_relay("--once", "--database", there, env={**urls, name: NOWHERE})
    assert alone.wait(60) == 0, alone.output()


def test_an_alias_that_does_not_answer_does_not_hold_another_up(
    broker: Broker, start_relay: Callable[..., Process]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        relay = start_relay(
            *BOTH, env={"OTHER_DATABASE_URL": f"postgres://u:p@127.0.0.1:{port}/silent"}
        )
        enqueue(3)
        wait_for(lambda: broker.queue_length() == 3, message=relay.output)
        wait_for(lambda: messages.published().count() == 3)
        relay.terminate()
        wait_for(lambda: not is_held())
        wait_for(lambda: ended_by_another(relay))  # the silent one hangs in the middle
        assert relay.wait(5) in {0, 128 + signal.SIGTERM}, relay.output()


# Liveness


def test_the_liveness_file_tells_whether_the_relay_goes_round(
    broker: Broker, start_relay: Callable[..., Process], tmp_path: Path
) -> None:
    alive = tmp_path / "alive"
    relay = start_relay("--liveness-file", str(alive))
    wait_for(lambda: relaying(relay))
    assert_goes_round(alive)
    assert probe(alive, 60)
    relay.stop_signal()
    wait_for(lambda: relay.stopped)
    wait_for(lambda: not probe(alive, 1))
    relay.cont_signal()
    wait_for(lambda: probe(alive, 1))


def test_it_goes_round_in_an_outage_too(
    start_relay: Callable[..., Process], tmp_path: Path
) -> None:
    alive = tmp_path / "alive"
    relay = start_relay(
        "--liveness-file", str(alive), env={"CELERY_BROKER_URL": "redis://127.0.0.1:1"}
    )
    wait_for(lambda: "The broker is unavailable" in relay.output(), message=relay.output)
    assert_goes_round(alive)


def assert_goes_round(alive: Path) -> None:
    for _ in range(2):
        before = alive.stat().st_mtime
        wait_for(lambda: alive.stat().st_mtime > before)  # noqa: B023


def probe(alive: Path, seconds: int) -> bool:
    """The probe of docs/production.md."""
    (command,) = re.findall(r"test \$\(\( .*-lt 60", PRODUCTION.read_text())
    command = command.replace("/run/relay/alive", str(alive)).replace("60", str(seconds))
    return subprocess.run(["sh", "-c", command], check=False).returncode == 0


def is_held() -> bool:
    """Whether a relay holds a row."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT id FROM outbox_outboxmessage FOR UPDATE SKIP LOCKED")
        free = len(cursor.fetchall())
    held: bool = free < messages.count()
    return held

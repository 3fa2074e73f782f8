"""The command in this process: one clear line for what is wrong. Processes: tests/integration."""

from __future__ import annotations

import io
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction

from outbox.management.commands.outbox_relay import Command
from outbox.models import OutboxMessage
from outbox.relay import Relay
from tests.unit.outbox.rows import MOMENT, message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.outbox.conftest import MemoryBroker

pytestmark = pytest.mark.django_db(databases=["default", "other"])
messages = OutboxMessage.objects


def relay_once(*arguments: str) -> str:
    output = io.StringIO()
    call_command("outbox_relay", "--once", *arguments, stdout=output)
    return output.getvalue()


def test_once_publishes_what_is_due_and_says_how_many(memory_broker: MemoryBroker) -> None:
    for _ in range(5):
        message()
    message(expires_at=MOMENT)
    told = relay_once("--batch-size", "2")
    assert told == "published 5, refused for now 0, dead 0, expired 1\n"
    assert len(memory_broker.ids()) == 5
    assert relay_once() == "published 0, refused for now 0, dead 0, expired 0\n"


def test_another_alias(memory_broker: MemoryBroker) -> None:
    message()
    message(using="other")
    assert relay_once("--database", "other").startswith("published 1,")
    assert messages.pending().count() == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--database", "nowhere"], "There is no database 'nowhere' in DATABASES: default, other."),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0."),
        (["--batch-size", "-5"], "--batch-size must be at least 1, not -5."),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], line: str) -> None:
    for mode in (["--once"], []):
        with pytest.raises(CommandError) as caught:
            call_command("outbox_relay", *mode, *arguments)
        assert str(caught.value) == line


def test_a_broker_that_is_away_is_one_line_and_counts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message()
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:secret@127.0.0.1:1/0")
    with pytest.raises(CommandError) as caught:
        relay_once()
    told = str(caught.value)
    assert told.startswith("no connection to the broker at redis://")
    assert "\n" not in told
    assert "secret" not in told
    assert set(messages.values_list("status", "attempts")) == {("pending", 0)}


def test_missing_tables_are_one_line_that_says_what_to_do() -> None:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE outbox_outboxmessage RENAME TO elsewhere")
        with pytest.raises(CommandError) as caught:
            relay_once()
        transaction.set_rollback(True)
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith("Database 'default': relation \"outbox_outboxmessage\" does not exist")
    assert told.endswith("Run manage.py migrate.")


def test_a_wrong_setting_is_told_by_its_name(settings: Any) -> None:
    settings.OUTBOX_BATCH_SIZE = "many"
    with pytest.raises(CommandError, match="OUTBOX_BATCH_SIZE must be a value of type int"):
        relay_once()


@pytest.fixture
def handlers() -> Iterator[None]:
    """Handlers may be set; what hangs in the main thread ends after ten seconds."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}

    def hangs(number: int, frame: object) -> None:
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_may_come_while_the_relay_looks_whether_to_stop(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler runs in the main thread, between two steps of whatever that does."""

    class Waiting(Relay):
        def run(self, stop: threading.Event | None = None, beat: object = None) -> None:
            assert stop is not None
            with stop._cond:  # type: ignore[attr-defined]
                os.kill(os.getpid(), number)
            assert stop.wait(10)

    Command()._run([Waiting()], None)
    assert capsys.readouterr().out.splitlines()[-1] == "Stopped."


@pytest.mark.usefixtures("handlers")
@pytest.mark.django_db(transaction=True)
def test_signals_wake_the_main_thread() -> None:
    """The system may send one to any thread that takes it, and the handler would not run."""
    masks = []

    class Ended(Relay):
        def run(self, stop: threading.Event | None = None, beat: object = None) -> None:
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    Command()._run([Ended(), Ended()], None)
    assert [mask & {signal.SIGTERM, signal.SIGINT} for mask in masks] == 2 * [
        {signal.SIGTERM, signal.SIGINT}
    ]


# Several databases


@pytest.fixture
def unusable_other(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody listens where the alias "other" leads."""
    other = connections["other"]
    other.close()
    monkeypatch.setitem(other.settings_dict, "PORT", "1")
    yield
    other.close()


@pytest.mark.django_db(databases=["other"])
def test_no_query_on_an_alias_that_was_not_named(memory_broker: MemoryBroker) -> None:
    """pytest-django lets nothing through to the default one."""
    message(using="other")
    assert relay_once("--database", "other").startswith("published 1,")


def test_several_aliases_one_after_the_other(memory_broker: MemoryBroker) -> None:
    message()
    message(using="other")
    message(using="other")
    told = relay_once("--database", "other", "--database", "default", "--database", "other")
    assert told == (
        "other: published 2, refused for now 0, dead 0, expired 0\n"
        "default: published 1, refused for now 0, dead 0, expired 0\n"
    )
    assert len(memory_broker.ids()) == 3


@pytest.mark.usefixtures("unusable_other")
@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_an_alias_that_is_away_does_not_keep_the_next_from_its_turn(
    memory_broker: MemoryBroker,
) -> None:
    message()
    output = io.StringIO()
    with pytest.raises(CommandError, match=r"^other: Database 'other': .*Connection refused"):
        call_command(
            "outbox_relay", "--once", "--database=other", "--database=default", stdout=output
        )
    assert output.getvalue().startswith("default: published 1,")


# The liveness file


def test_a_liveness_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"--liveness-file cannot be written: .*absent/file"):
        call_command("outbox_relay", "--liveness-file", str(tmp_path / "absent" / "file"))

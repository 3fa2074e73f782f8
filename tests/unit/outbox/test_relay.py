"""Claim -> publish -> settle, and what a long run says of an outage."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery.signals import after_task_publish, before_task_publish
from django.db import connection, connections, transaction
from django.test import override_settings

from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.relay import LONGEST_WAIT, Relay, RelayResult, _Outage
from tests.helpers import wait_for
from tests.project import tasks
from tests.unit.outbox.rows import MOMENT, message, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.outbox.conftest import MemoryBroker

record: Any = tasks.record
messages = OutboxMessage.objects

pytestmark = pytest.mark.django_db(databases=["default", "other"])
in_transactions = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def enqueue(number: int, using: str = "default", **options: Any) -> list[OutboxMessage]:
    with transaction.atomic(using=using):
        return messages.enqueue_many([record.s("x").set(**options)] * number, using=using)


# One batch


def test_an_empty_outbox_is_an_empty_result(relay: Relay) -> None:
    assert relay.run_once() == RelayResult()
    assert relay.run_once().claimed == 0


def test_what_is_due_is_published_and_settled(relay: Relay, memory_broker: MemoryBroker) -> None:
    rows = enqueue(3)
    enqueue(1, countdown=60)
    assert relay.run_once() == RelayResult(published=3)
    assert memory_broker.ids() == [str(row.pk) for row in rows]
    for row in rows:
        row.refresh_from_db()
        assert (row.status, row.available_at, row.attempts) == ("published", None, 0)
        assert row.published_at is not None
    assert relay.run_once() == RelayResult()


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_without_a_message_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {size}[.]"):
        Relay(batch_size=size)


def test_an_uncommitted_message_is_not_published(memory_broker: MemoryBroker) -> None:
    """The relay's connection sees what is committed, and no more."""
    enqueue(1)
    found: list[RelayResult] = []

    def other_relay() -> None:
        with closing(Relay()) as relay:
            found.append(relay.run_once())
        connection.close()

    thread = threading.Thread(target=other_relay)
    thread.start()
    thread.join(30)
    assert found == [RelayResult()]


def test_a_batch_is_bounded_in_rows(memory_broker: MemoryBroker) -> None:
    enqueue(5)
    with closing(Relay(batch_size=2)) as relay:
        assert [relay.run_once().published for _ in range(4)] == [2, 2, 1, 0]
    enqueue(3)
    with override_settings(OUTBOX_BATCH_SIZE=2), closing(Relay()) as relay:
        assert [relay.run_once().published for _ in range(3)] == [2, 1, 0]


def test_a_batch_is_bounded_in_bytes(relay: Relay) -> None:
    enqueue(3)
    with override_settings(OUTBOX_BATCH_BYTES=1):
        assert [relay.run_once().published for _ in range(4)] == [1, 1, 1, 0]


def test_draining_adds_up_until_nothing_is_due(memory_broker: MemoryBroker) -> None:
    enqueue(5)
    message(expires_at=MOMENT)
    with closing(Relay(batch_size=2)) as relay:
        assert relay.drain() == RelayResult(published=5, expired=1)
    assert len(memory_broker.ids()) == 5


def test_its_stamps_name_their_offset_where_time_zones_are_off(
    relay: Relay, memory_broker: MemoryBroker, settings: Any
) -> None:
    """A worker takes a moment without one for another moment, or for nothing at all."""
    settings.TIME_ZONE, settings.USE_TZ = "America/New_York", False
    enqueue(1, expires=600)
    before = datetime.now(UTC)
    assert relay.run_once().published == 1
    [sent] = memory_broker.queue()
    published_at = datetime.fromisoformat(sent["headers"]["published_at"])
    expires = datetime.fromisoformat(sent["headers"]["expires"])
    assert abs(published_at - before) < timedelta(minutes=1)
    assert timedelta(minutes=9) < expires - before < timedelta(minutes=11)


def test_an_expired_message_ends_without_being_published(
    relay: Relay, memory_broker: MemoryBroker
) -> None:
    late = message(expires_at=MOMENT)
    assert relay.run_once() == RelayResult(expired=1)
    assert status_of(late) == "expired"
    assert memory_broker.ids() == []


def test_a_message_without_a_countdown_waits_for_nobody(
    relay: Relay, memory_broker: MemoryBroker
) -> None:
    (deferred,) = enqueue(1, countdown=0.05)
    (now,) = enqueue(1)
    assert relay.run_once() == RelayResult(published=1)
    wait_for(messages.due().exists)
    assert relay.run_once() == RelayResult(published=1)
    assert memory_broker.ids() == [str(now.pk), str(deferred.pk)]


def test_the_worker_is_told_of_an_alias_that_is_not_the_default(
    relay: Relay, memory_broker: MemoryBroker
) -> None:
    enqueue(1)
    enqueue(1, using="other")
    relay.run_once()
    with closing(Relay("other")) as other:
        other.run_once()
    told = [published["headers"].get("published_from") for published in memory_broker.queue()]
    assert told == [None, "other"]


def test_the_alias_of_a_message_whose_headers_were_handed_on_is_not_told(
    relay: Relay, memory_broker: MemoryBroker
) -> None:
    enqueue(1, headers={"published_from": "other", "trace": "x"})
    assert relay.run_once() == RelayResult(published=1)
    (published,) = memory_broker.queue()
    assert "published_from" not in published["headers"]
    assert published["headers"]["trace"] == "x"


def test_another_alias_has_its_own_relay(relay: Relay, memory_broker: MemoryBroker) -> None:
    here, there = enqueue(1), enqueue(2, using="other")
    assert relay.run_once() == RelayResult(published=len(here))
    with closing(Relay("other")) as other:
        assert other.run_once() == RelayResult(published=len(there))
    assert messages.using("other").published().count() == 2
    assert len(memory_broker.ids()) == 3


def test_a_row_that_cannot_be_read_is_dead_and_stops_nobody(
    relay: Relay, memory_broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    rows = enqueue(3)
    with connection.cursor() as cursor:
        update = "UPDATE outbox_outboxmessage SET {} = %s WHERE id = %s"
        cursor.execute(update.format("headers"), ["{", rows[0].pk])
        cursor.execute(update.format("properties"), ["[]", rows[1].pk])
    assert relay.run_once() == RelayResult(published=1, dead=2)
    assert memory_broker.ids() == [str(rows[2].pk)]
    assert caplog.text.count("the row cannot be read") == 2


def test_celerys_signals_belong_to_the_enqueue(relay: Relay) -> None:
    fired: list[str] = []

    def note(headers: dict[str, Any], **kwargs: Any) -> None:
        fired.append(headers["id"])

    for sent in (before_task_publish, after_task_publish):
        sent.connect(note)
    try:
        (row,) = enqueue(1)
        assert fired == [str(row.pk)] * 2
        assert relay.run_once() == RelayResult(published=1)
        assert fired == [str(row.pk)] * 2
    finally:
        for sent in (before_task_publish, after_task_publish):
            sent.disconnect(note)


# Redelivery


def test_what_has_no_receipt_is_published_again_when_its_queue_is_empty(
    relay: Relay, memory_broker: MemoryBroker
) -> None:
    with transaction.atomic():
        row = messages.enqueue(tasks.record_once.s("x"))
    assert relay.run_once() == RelayResult(published=1)
    messages.update(available_at=MOMENT)
    assert relay.run_once() == RelayResult(postponed=1)  # it waits in its queue
    memory_broker.lose()
    messages.update(available_at=MOMENT)
    assert relay.run_once() == RelayResult(published=1)
    assert memory_broker.ids() == [str(row.pk)]


# A long run


class Run:
    """``Relay.run()`` in a thread of its own."""

    def __init__(self, relay: Relay) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(relay,))
        self.thread.start()

    def _run(self, relay: Relay) -> None:
        try:
            relay.run(self.stop)
        except BaseException as error:
            self.error = error
        finally:
            relay.close()
            connections.close_all()

    def end(self) -> None:
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()
        assert self.error is None


@pytest.fixture
def run(memory_broker: MemoryBroker, transactional_db: None) -> Iterator[Run]:
    running = Run(Relay())
    try:
        yield running
    finally:
        running.end()


@in_transactions
def test_a_run_publishes_what_comes_until_it_is_stopped(
    run: Run, memory_broker: MemoryBroker
) -> None:
    enqueue(1)
    wait_for(lambda: len(memory_broker.ids()) == 1)
    enqueue(2)
    wait_for(lambda: len(memory_broker.ids()) == 3)
    run.end()
    enqueue(1)
    assert len(memory_broker.ids()) == 3


@in_transactions
def test_a_run_outlives_its_database_connection(
    run: Run, memory_broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    enqueue(1)
    wait_for(memory_broker.ids)
    with caplog.at_level(logging.WARNING, "outbox.relay"), connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database() "
            "AND backend_type = 'client backend'"
        )
        assert cursor.fetchone()[0] >= 1
        wait_for(lambda: "Available again" in caplog.text)
        enqueue(1)
        wait_for(lambda: len(memory_broker.ids()) == 2)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert caplog.records[0].getMessage().startswith("The database 'default' is unavailable: ")
    assert "\n" not in caplog.records[0].getMessage()


class Outages(Relay):
    """A relay that says of each batch what the script says."""

    def __init__(self, *script: Exception | RelayResult) -> None:
        super().__init__()
        self.script = list(script)
        self.stop = threading.Event()

    def _is_due(self) -> bool:
        return True

    def _round(self) -> RelayResult:
        step = self.script.pop(0)
        if not self.script:
            self.stop.set()
        if isinstance(step, Exception):
            raise step
        return step


def test_an_outage_is_told_once_when_it_begins_and_once_when_it_ends(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.relay.FIRST_WAIT", timedelta(0))
    away = BrokerUnavailable("nobody at amqp://")
    relay = Outages(RelayResult(), *[away] * 5, RelayResult(1), RelayResult(), away, RelayResult())
    with caplog.at_level(logging.DEBUG, "outbox.relay"):
        relay.run(relay.stop)
    begins = (
        "The broker is unavailable: nobody at amqp://. "
        "No message is lost and no attempt counted; trying again."
    )
    assert [record.getMessage() for record in caplog.records] == [
        begins,
        "Available again for database 'default', after 5 failed tries.",
        begins,
        "Available again for database 'default', after 1 failed tries.",
    ]


class Waits(threading.Event):
    """Keeps the seconds for which somebody would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout)
        return self.is_set()


@override_settings(OUTBOX_POLL_INTERVAL=8)
def test_a_relay_looks_sooner_after_a_message_than_when_it_is_idle() -> None:
    nothing = [RelayResult()]
    relay = Outages(RelayResult(1), *nothing * 5, RelayResult(1), RelayResult(1), *nothing * 2)
    relay.stop = waits = Waits()
    relay.run(waits)
    assert waits.seconds == [2, 4, 8, 8, 8, 2, 4]


def test_an_error_of_its_own_ends_a_run() -> None:
    relay = Outages(LookupError("a bug"), RelayResult())
    with pytest.raises(LookupError):
        relay.run(relay.stop)


def test_the_wait_in_an_outage_is_drawn_below_a_bound_that_doubles_to_a_cap() -> None:
    outages = [_Outage("default") for _ in range(200)]
    for bound in (1, 2, 4, 8, 10, 10):
        waits = [outage.goes_on("x") for outage in outages]
        assert max(waits) <= bound
        assert max(waits) > bound * 0.9
        assert min(waits) < bound * 0.1
    assert timedelta(seconds=10) == LONGEST_WAIT


def test_refusals_are_logged_with_the_message(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    (row,) = enqueue(1)
    messages.update(queue="", exchange="", properties={"foo": 1, "expiration": "x"})
    relay.run_once()
    assert f"Message {row.pk} was refused by the broker" in caplog.text
    assert "dead" not in caplog.text


def test_that_messages_are_dead_is_logged(relay: Relay, caplog: pytest.LogCaptureFixture) -> None:
    enqueue(2)
    messages.update(queue="", exchange="", properties={"foo": 1, "expiration": "x"})
    with override_settings(OUTBOX_MAX_ATTEMPTS=1):
        relay.run_once()
    *_, last = caplog.records
    assert last.levelname == "ERROR"
    assert "dead now" in last.getMessage()
    assert last.getMessage().endswith(": 2 in database 'default'.")

"""A relay whose claims start at the watermark: what it passes by for a while, and what never."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.models.functions import Now

from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.publisher import Publisher
from outbox.querysets import OutboxQuerySet
from outbox.relay import Relay, RelayResult
from outbox.sweep import Sweep
from outbox.watermark import LAG
from tests.helpers import wait_for
from tests.project import tasks
from tests.unit.outbox.rows import MOMENT, message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.outbox.conftest import MemoryBroker

record: Any = tasks.record
messages = OutboxMessage.objects

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

NEVER = timedelta(hours=1)


@pytest.fixture
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at everything take too long, and it is not yet time for a look behind."""
    monkeypatch.setattr("outbox.watermark.CHEAP", timedelta.min)
    monkeypatch.setattr("outbox.watermark.JUDGED", 1)
    monkeypatch.setattr("outbox.watermark.PAUSE_BEHIND", NEVER)


@pytest.fixture
def unswept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not yet time for a sweep."""
    monkeypatch.setattr(Sweep, "stretch", lambda *args, **options: None)


@pytest.fixture
def seeking(dear: None, unswept: None, relay: Relay) -> Relay:
    """A relay that has looked at everything."""
    assert relay._round() == RelayResult()
    return relay


@pytest.fixture
def sweeping(dear: None, monkeypatch: pytest.MonkeyPatch, relay: Relay) -> Relay:
    """A relay that has looked at everything, and has all the time for sweeps."""
    monkeypatch.setattr("outbox.sweep.PAUSES", 0)
    assert relay._round() == RelayResult()
    return relay


@contextmanager
def meanwhile(enqueue: bool = True) -> Iterator[threading.Event]:
    """Have another transaction write a message, or else lock all, and end when the event is set."""
    begun, end = threading.Event(), threading.Event()

    def run() -> None:
        try:
            with transaction.atomic():
                if enqueue:
                    messages.enqueue(record.s("x"))
                else:
                    list(messages.select_for_update())
                begun.set()
                end.wait(30)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30)
    try:
        yield end
    finally:
        end.set()
        thread.join(30)


def ended(thread_end: threading.Event) -> None:
    """Wait until the other transaction has ended."""
    thread_end.set()
    wait_for(lambda: not in_transaction())


def in_transaction() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() "
            "AND state = 'idle in transaction')"
        )
        return bool(cursor.fetchone()[0])


# What a claim from the watermark finds


def test_what_comes_is_found_at_once(seeking: Relay) -> None:
    for _ in range(3):
        message()
        assert seeking._round() == RelayResult(published=1)


def test_what_became_due_within_the_lag_is_found_although_it_committed_later(
    seeking: Relay,
) -> None:
    with meanwhile() as end:
        message()
        assert seeking._round() == RelayResult(published=1)
        ended(end)
        assert seeking._round() == RelayResult(published=1)


def test_what_was_deferred_is_found_when_it_is_due(seeking: Relay) -> None:
    message(signature=record.s("x").set(countdown=0.2))
    assert seeking._round() == RelayResult()
    wait_for(lambda: seeking._round().published, timeout=5)


def test_a_message_that_is_retried_is_found_at_once(seeking: Relay) -> None:
    message("dead")
    messages.retry()
    assert seeking._round() == RelayResult(published=1)


def test_each_database_has_its_own_watermark(seeking: Relay) -> None:
    message(available_at=MOMENT, using="other")
    with closing(Relay("other")) as other:
        assert other._round() == RelayResult(published=1)


# What it passes by, until it looks behind


def test_what_committed_later_than_the_lag(seeking: Relay) -> None:
    with meanwhile() as end:
        wait_for(lag_is_over)
        assert seeking._round() == RelayResult()
        ended(end)
        assert with_a_look_behind(seeking)


def test_what_another_relay_held_for_a_while(seeking: Relay) -> None:
    message()
    with meanwhile(enqueue=False) as end:
        wait_for(lag_is_over)
        assert seeking._round() == RelayResult()
        ended(end)
        assert with_a_look_behind(seeking)


def with_a_look_behind(relay: Relay) -> bool:
    """Whether a message is published with the next look behind the watermark, and not before."""
    assert relay._round() == RelayResult()
    relay._watermark._next_look_behind = relay._watermark._last
    return relay._round() == RelayResult(published=1)


# What it passes by, until a sweep comes to it


def test_what_became_due_long_ago_and_appears_now(sweeping: Relay) -> None:
    for ago in (timedelta(0), timedelta(hours=1), timedelta(days=30)):
        message(available_at=Now() - ago - 2 * LAG)
        wait_for(lambda: sweeping._round().published, timeout=5, interval=0)


def test_what_is_due_since_before_any_moment(sweeping: Relay) -> None:
    row = message()
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE outbox_outboxmessage SET available_at = '-infinity' WHERE id = %s", [row.pk]
        )
    wait_for(lambda: sweeping._round().published, timeout=5, interval=0)


def test_what_another_relay_held_when_this_one_began(sweeping: Relay) -> None:
    message(available_at=MOMENT)
    with meanwhile(enqueue=False) as end:
        sweeping._watermark.forget()
        for _ in range(100):
            assert sweeping._round() == RelayResult()
        ended(end)
    wait_for(lambda: sweeping._round().published, timeout=5, interval=0)


def test_a_burst_is_swept_behind(
    sweeping: Relay, memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may go on for hours."""
    for number in range(100):
        message(available_at=MOMENT + timedelta(seconds=number))
    with closing(Relay(batch_size=2)) as relay, closing(relay._results()) as results:
        for _ in range(3):
            next(results)
        late = message(available_at=MOMENT - timedelta(days=1))
        for _ in range(30):
            next(results)
    assert str(late.pk) in memory_broker.ids()


def test_a_look_at_everything_that_costs_no_more_is_made_each_time(relay: Relay) -> None:
    """Then nothing waits for anything: so it is unless dead entries pile up."""
    for _ in range(10):
        message(available_at=MOMENT)
        assert relay._round() == RelayResult(published=1)


def lag_is_over() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM clock_timestamp() - min(xact_start)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND state = 'idle in transaction'"
        )
        return bool(cursor.fetchone()[0] > LAG.total_seconds() + 0.2)


# An idle relay, which looks before it claims


def test_an_idle_relay_claims_only_when_something_is_due(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[Any] = []
    claim = OutboxQuerySet.claim

    def noting(self: OutboxQuerySet, *args: Any) -> Any:
        claims.append(claim(self, *args))
        return claims[-1]

    monkeypatch.setattr(OutboxQuerySet, "claim", noting)
    with closing(relay._results()) as results:
        assert [next(results) for _ in range(5)] == [RelayResult()] * 5
        assert claims == [[]]
        row = message()
        assert next(results) == RelayResult(published=1)
        assert [claimed.id for claimed in claims[-1]] == [row.pk]
        assert next(results) == RelayResult()
        assert len(claims) == 3


def test_an_idle_relay_sweeps(sweeping: Relay, memory_broker: MemoryBroker) -> None:
    with closing(sweeping._results()) as results:
        for _ in range(3):
            assert next(results) == RelayResult()
        row = message(available_at=MOMENT)
        wait_for(lambda: next(results).published, timeout=5, interval=0)
    assert memory_broker.ids() == [str(row.pk)]


def test_an_idle_relay_looks_behind(seeking: Relay, memory_broker: MemoryBroker) -> None:
    with closing(seeking._results()) as results:
        assert next(results) == RelayResult()
        row = message()
        with meanwhile(enqueue=False) as end:
            wait_for(lag_is_over)
            seeking._round()
            ended(end)
        assert next(results) == RelayResult()
        seeking._watermark._next_look_behind = seeking._watermark._last
        wait_for(lambda: next(results).published, timeout=5, interval=0)
    assert memory_broker.ids() == [str(row.pk)]


# What must be known to be nothing


def test_a_single_round_looks_at_everything(seeking: Relay) -> None:
    message(available_at=MOMENT)
    assert seeking.run_once() == RelayResult(published=1)


def test_draining_ends_when_a_look_at_everything_finds_nothing(seeking: Relay) -> None:
    message()
    message(available_at=MOMENT)
    assert seeking.drain() == RelayResult(published=2)


# What it let go of itself


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("publish", LookupError("a bug")),
        ("await_confirms", LookupError("a bug")),
        ("_step", BrokerUnavailable("an outage")),
    ],
)
def test_what_was_claimed_when_an_error_came_is_found_at_once(
    name: str, error: Exception, seeking: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed_long_ago(seeking)
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, name, raising(error))
        with pytest.raises(type(error)):
            seeking._round()
    assert seeking._round() == RelayResult(published=2)


def test_what_could_not_be_committed_is_found_at_once(
    seeking: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed_long_ago(seeking)
    with monkeypatch.context() as patch:
        patch.setattr(connections["default"], "_commit", raising(OperationalError("gone")))
        with pytest.raises(OperationalError):
            seeking._round()
    assert seeking._round() == RelayResult(published=2)


def claimed_long_ago(relay: Relay) -> None:
    """What the next round claims, from everything, was due long before the lag."""
    for seconds in (0, 1):
        message(available_at=MOMENT + timedelta(seconds=seconds))
    relay._watermark.forget()


def raising(error: Exception) -> Any:
    def fail(*args: object) -> None:
        raise error

    return fail


# A backlog


def test_each_claim_of_a_burst_starts_where_the_last_one_came_to(
    dear: None, unswept: None, memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [message(available_at=MOMENT + timedelta(seconds=number)) for number in range(9)]
    starts: list[object] = []
    claim = OutboxQuerySet.claim

    def noting(self: OutboxQuerySet, rows: int, size: int, start: Any) -> Any:
        starts.append(start and int((start - MOMENT).total_seconds()))
        return claim(self, rows, size, start)

    monkeypatch.setattr(OutboxQuerySet, "claim", noting)
    with closing(Relay(batch_size=2)) as relay:
        assert relay.drain() == RelayResult(published=9)
    assert starts[:5] == [None, 1, 3, 5, 7]
    assert memory_broker.ids() == [str(row.pk) for row in rows]

"""RabbitMQ: one bad message stops nobody, and what cannot arrive is noticed."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import closing, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from celery import current_app
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test import override_settings

from outbox.confirms import WINDOW
from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.publisher import Publisher
from outbox.relay import Relay, RelayResult
from tests.conftest import _running
from tests.helpers import wait_for
from tests.integration.outbox.queues import arrivals, take_all
from tests.project import tasks
from tests.servers.brokers import Broker, open_broker
from tests.servers.rabbitmq import RabbitMQ
from tests.unit.outbox.rows import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.django_db

record: Any = tasks.record
messages = OutboxMessage.objects


@pytest.fixture(scope="module")
def strict_rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ that takes messages of one mebibyte."""
    yield from _running(lambda: RabbitMQ(configuration=["max_message_size = 1048576"]))


@pytest.fixture
def broker(strict_rabbitmq: RabbitMQ) -> Iterator[Broker]:
    for opened in open_broker("rabbitmq", strict_rabbitmq):
        with opened.serving_app():
            yield opened


@pytest.fixture
def relay(broker: Broker) -> Iterator[Relay]:
    with closing(Relay()) as relay:
        yield relay


@pytest.fixture
def channel(broker: Broker) -> Iterator[Any]:
    """For what an operator does on the broker."""
    with broker.connection() as opened:
        yield opened.channel()


def enqueue(number: int, **options: Any) -> list[OutboxMessage]:
    with transaction.atomic():
        return messages.enqueue_many([record.s("x").set(**options)] * number)


def change(message: OutboxMessage, **changes: Any) -> OutboxMessage:
    """Change a row behind the back of enqueue(), which refuses such a message."""
    messages.filter(pk=message.pk).update(**changes)
    return message


def error_of(message: OutboxMessage) -> str:
    message.refresh_from_db()
    (error,) = message.errors
    return str(error["error"])


# One bad message among 500: how it became bad, what the broker says, and whether it is final.

POISONS: dict[str, tuple[Callable[[OutboxMessage], object], str, bool]] = {
    "missing exchange": (
        lambda row: change(row, queue="", exchange="missing"),
        "NOT_FOUND - no exchange 'missing'",
        False,
    ),
    "missing exchange, with a queue": (
        lambda row: change(row, exchange="missing"),
        "NOT_FOUND - no exchange 'missing'",
        False,
    ),
    "unroutable key": (
        lambda row: change(row, queue="", exchange="amq.topic", routing_key="nobody.hears"),
        "could not route it .* 'amq.topic', routing key 'nobody.hears'",
        False,
    ),
    "unroutable key, own correlation_id": (
        lambda row: change(
            row, queue="", routing_key="nobody", properties=with_own_correlation_id(row)
        ),
        "could not route it .* routing key 'nobody'",
        False,
    ),
    "over-large": (
        lambda row: change(row, body=b"x" * 2**21),
        "PRECONDITION_FAILED - message size 2097152 .*larger than configured max size",
        False,
    ),
    "headers larger than a frame": (
        lambda row: change(row, headers={**row.headers, "huge": "x" * 200_000}),
        "FRAME_ERROR|frame_too_large|Connection|closed|reset|Broken",
        False,
    ),
    "not a number in a header": (
        lambda row: change(row, headers={**row.headers, "ratio": float("nan")}),
        "INTERNAL_ERROR|Connection|closed|reset|Broken",
        False,
    ),
    "a header that AMQP has no type for": (
        lambda row: change(row, headers={**row.headers, "other": row.pk}),
        "FrameSyntaxError.*UUID",
        True,
    ),
    "a property that AMQP has no room for": (
        lambda row: change(row, properties={**row.properties, "priority": 1000}),
        "format requires",
        True,
    ),
    "headers that are not JSON": (
        lambda row: execute("UPDATE outbox_outboxmessage SET headers = '{' WHERE id = %s", row),
        "the row cannot be read",
        True,
    ),
    "properties that are of no type": (
        lambda row: execute(
            """UPDATE outbox_outboxmessage
            SET properties = '{"x": {"__type__": "y", "__value__": 1}}' WHERE id = %s""",
            row,
        ),
        "the row cannot be read",
        True,
    ),
}


def with_own_correlation_id(row: OutboxMessage) -> dict[str, Any]:
    return {**row.properties, "correlation_id": "own"}


def execute(sql: str, row: OutboxMessage) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, [row.pk])


@pytest.mark.parametrize(
    ("poison", "place"),
    [
        *((poison, 250) for poison in POISONS),
        *((poison, place) for poison in ("over-large", "unroutable key") for place in (0, 499)),
    ],
)
def test_one_bad_message_among_500_stops_nobody(
    poison: str, place: int, broker: Broker, relay: Relay
) -> None:
    spoil, words, final = POISONS[poison]
    rows = enqueue(500)
    bad = rows[place]
    spoil(bad)
    result = relay.run_once()
    assert result == RelayResult(published=499, failed=int(not final), dead=int(final))
    assert messages.published().count() == 499
    arrived = arrivals(broker, "celery")
    assert set(arrived) == {str(row.pk) for row in rows if row != bad}
    # Only what was on its way when the broker closed the channel went out again.
    assert sum(number > 1 for number in arrived.values()) <= WINDOW // 2
    assert max(arrived.values()) <= 2
    (fate,) = messages.filter(pk=bad.pk).values_list("status", "attempts", "errors")
    status, attempts, (error,) = fate
    assert (status, attempts) == ("dead" if final else "pending", 1)
    assert re.search(words, error["error"]), error


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("poison", POISONS)
def test_bad_messages_in_batches_that_overlap_stop_nobody(poison: str, broker: Broker) -> None:
    """Each is found, whichever batches were on their way with it."""
    spoil, words, final = POISONS[poison]
    rows = enqueue(900)
    bad = [rows[place] for place in (150, 299, 300, 850)]
    for row in bad:
        spoil(row)
    long = timedelta(days=30)
    backoff = override_settings(OUTBOX_BACKOFF_BASE=long, OUTBOX_BACKOFF_MAX=long)
    with backoff, closing(Relay(batch_size=100)) as relay:
        result = relay.drain()
    assert (result.published, result.claimed - result.published) == (896, 4)
    arrived = arrivals(broker, "celery")
    assert set(arrived) == {str(row.pk) for row in rows if row not in bad}
    assert sum(arrived.values()) <= 896 + 4 * WINDOW
    refused = messages.filter(pk__in=[row.pk for row in bad])
    for status, attempts, errors in refused.values_list("status", "attempts", "errors"):
        assert (status, attempts) == ("dead" if final else "pending", 1)
        assert re.search(words, errors[0]["error"])
    assert messages.exclude(pk__in=[row.pk for row in bad]).exclude(attempts=0).count() == 0


def test_several_bad_messages_have_an_error_each(broker: Broker, relay: Relay) -> None:
    rows = enqueue(300)
    bad = dict(zip(POISONS, rows[::25], strict=False))
    assert len(bad) == len(POISONS)
    for poison, row in bad.items():
        POISONS[poison][0](row)
    final = sum(is_final for _, _, is_final in POISONS.values())
    assert relay.run_once() == RelayResult(
        published=300 - len(bad), failed=len(bad) - final, dead=final
    )
    for poison, row in bad.items():
        (errors,) = messages.filter(pk=row.pk).values_list("errors", flat=True)
        assert re.search(POISONS[poison][1], errors[0]["error"]), (poison, errors)
    arrived = arrivals(broker, "celery")
    assert set(arrived) == {str(row.pk) for row in rows if row not in bad.values()}


def test_a_bad_message_dies_and_never_stops_the_others(broker: Broker, relay: Relay) -> None:
    (bad,) = enqueue(1)
    change(bad, body=b"x" * 2**21)
    with override_settings(OUTBOX_MAX_ATTEMPTS=3, OUTBOX_BACKOFF_BASE=0.001):
        for attempt in (1, 2, 3):
            (good,) = enqueue(1)
            wait_for(lambda: messages.due().count() == 2)
            result = relay.run_once()
            assert (result.published, result.failed + result.dead) == (1, 1)
            assert status_of(good) == "published"
            bad.refresh_from_db()
            assert bad.attempts == len(bad.errors) == attempt
    assert bad.status == "dead"


@override_settings(OUTBOX_BACKOFF_BASE=1000)
def test_an_error_of_one_message_is_not_anothers(broker: Broker, relay: Relay) -> None:
    """The channel closes while the next message's queue has still to be declared."""
    (bad,) = enqueue(1)
    change(bad, body=b"x" * 2**21)
    queues = [f"new {number}" for number in range(5)]
    good = [enqueue(1, queue=queue)[0] for queue in queues]
    assert relay.run_once() == RelayResult(published=5, failed=1)
    assert "larger than configured" in error_of(bad)
    assert set(arrivals(broker, *queues)) == {str(row.pk) for row in good}
    # The connection is as good as before.
    enqueue(300)
    assert relay.run_once() == RelayResult(published=300)


# Queues


def test_a_queue_that_no_worker_has_served_keeps_its_messages(broker: Broker, relay: Relay) -> None:
    plain, bound = enqueue(1, queue="unserved")[0], enqueue(1, queue="topical")[0]
    assert relay.run_once() == RelayResult(published=2)
    assert set(arrivals(broker, "unserved", "topical")) == {str(plain.pk), str(bound.pk)}


def test_what_the_relay_declares_is_what_a_worker_declares(broker: Broker, relay: Relay) -> None:
    enqueue(1, queue="ranked", routing_key="ranked", exchange="ranked")
    enqueue(1, queue="topical")
    enqueue(1, queue="unserved")
    assert relay.run_once().published == 3
    with broker.connection() as opened:
        for name in ("ranked", "topical", "unserved"):
            queue: Any = current_app.amqp.queues[name]
            queue(opened.channel()).declare()  # a difference closes the channel


def test_a_queue_that_is_there_without_its_exchange_gets_it(
    broker: Broker, relay: Relay, channel: Any
) -> None:
    channel.queue_declare("topical", durable=True, auto_delete=False)
    (row,) = enqueue(1, queue="topical", routing_key="topic.x")
    assert relay.run_once() == RelayResult(published=1)
    assert set(arrivals(broker, "topical")) == {str(row.pk)}


def test_a_queue_that_is_declared_otherwise_is_used_as_it_is(
    broker: Broker, relay: Relay, channel: Any
) -> None:
    channel.queue_declare(
        "ranked", durable=True, auto_delete=False, arguments={"x-max-priority": 3}
    )
    enqueue(1, queue="ranked", routing_key="ranked")
    assert relay.run_once() == RelayResult(published=1)


def test_a_queue_that_another_owns_alone_refuses_its_messages_only(
    broker: Broker, relay: Relay, channel: Any
) -> None:
    channel.queue_declare("owned", exclusive=True)
    (bad,) = enqueue(1, queue="owned")
    enqueue(1)
    assert relay.run_once() == RelayResult(published=1, failed=1)
    assert "RESOURCE_LOCKED" in error_of(bad)


def test_a_queue_that_nobody_may_create_is_named(
    broker: Broker, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bad,) = enqueue(1, queue="later removed")
    queues: Any = current_app.amqp.queues
    queues.pop("later removed")
    monkeypatch.setattr(queues, "create_missing", False)
    enqueue(1)
    assert relay.run_once() == RelayResult(published=1, failed=1)
    assert "'later removed' is not in task_queues" in error_of(bad)


def test_a_full_queue_refuses_what_it_cannot_take(
    broker: Broker, relay: Relay, channel: Any
) -> None:
    channel.queue_declare(
        "small",
        durable=True,
        auto_delete=False,
        arguments={"x-max-length": 3, "x-overflow": "reject-publish"},
    )
    rows = enqueue(10, queue="small")
    assert relay.run_once() == RelayResult(published=3, failed=7)
    arrived = arrivals(broker, "small")
    assert set(arrived) == {str(row.pk) for row in messages.published()}
    refused = messages.pending()
    assert {str(row.pk) for row in refused} == {str(row.pk) for row in rows} - set(arrived)
    for row in refused:
        assert "basic.nack" in error_of(row)
    # There is room again.
    messages.update(available_at=OutboxMessage.objects.latest("created_at").created_at)
    assert relay.run_once().published == 3


def test_what_is_mended_on_the_broker_goes_out_with_the_next_attempt(
    broker: Broker, relay: Relay, channel: Any
) -> None:
    (row,) = enqueue(1, queue="celery")
    change(row, queue="", exchange="made later", routing_key="x")
    with override_settings(OUTBOX_BACKOFF_BASE=0.001):
        assert relay.run_once() == RelayResult(failed=1)
        channel.exchange_declare("made later", "direct", durable=True, auto_delete=False)
        wait_for(messages.due().exists)
        assert relay.run_once() == RelayResult(failed=1)  # unroutable now
        channel.queue_declare("made later", durable=True, auto_delete=False)
        channel.queue_bind("made later", "made later", "x")
        wait_for(messages.due().exists)
        assert relay.run_once() == RelayResult(published=1)
    assert set(arrivals(broker, "made later")) == {str(row.pk)}


def test_a_queue_that_was_deleted_is_declared_again(
    broker: Broker, relay: Relay, channel: Any
) -> None:
    enqueue(1)
    assert relay.run_once() == RelayResult(published=1)
    channel.queue_delete("celery")
    (row,) = enqueue(1)
    with override_settings(OUTBOX_BACKOFF_BASE=0.001):
        assert relay.run_once() == RelayResult(failed=1)
        wait_for(messages.due().exists)
        assert relay.run_once() == RelayResult(published=1)
    assert set(arrivals(broker, "celery")) == {str(row.pk)}


# What is made at the publish


def test_the_time_to_live_counts_from_the_publish(broker: Broker, relay: Relay) -> None:
    enqueue(1, expires=3600)
    enqueue(1)
    assert relay.run_once() == RelayResult(published=2)
    first, second = sorted(take_all(broker, "celery"), key=lambda m: not m.headers["expires"])
    assert 3_590_000 < int(first.properties["expiration"]) <= 3_600_000
    assert "expiration" not in second.properties


def test_a_time_to_live_that_the_broker_refuses_is_left_to_the_worker(
    broker: Broker, relay: Relay
) -> None:
    (row,) = enqueue(1, expires=11 * 365 * 86_400)
    assert relay.run_once() == RelayResult(published=1)
    (message,) = take_all(broker, "celery")
    assert row.expires_at is not None
    assert message.headers["expires"] == row.expires_at.isoformat()
    assert "expiration" not in message.properties


def test_an_expired_message_does_not_go_out(broker: Broker, relay: Relay) -> None:
    (late,) = enqueue(1, expires=0.001)
    (retried,) = enqueue(1, expires=0.001)
    wait_for(lambda: not messages.filter(expires_at__gt=Now()).exists())
    (intime,) = enqueue(1, expires=60)
    assert relay.run_once() == RelayResult(published=1, expired=2)
    assert (status_of(late), status_of(retried)) == ("expired", "expired")
    assert set(arrivals(broker, "celery")) == {str(intime.pk)}
    assert messages.filter(pk=retried.pk).retry() == 1
    assert relay.run_once() == RelayResult(published=1)
    (message,) = take_all(broker, "celery")
    assert message.headers["expires"] is None
    assert "expiration" not in message.properties


# Outages


@pytest.mark.parametrize("queue", ["celery", "fresh"], ids=["confirms", "declares"])
def test_a_broker_that_freezes_is_not_the_messages_fault(
    queue: str, broker: Broker, settings: Any
) -> None:
    settings.OUTBOX_CLAIM_TIMEOUT = 3
    with closing(Relay()) as relay:
        freeze(queue, broker, relay)


def freeze(queue: str, broker: Broker, relay: Relay) -> None:
    enqueue(1)
    relay.run_once()
    rows = enqueue(3, queue=queue)
    server: Any = broker.server
    os.kill(server.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=r"did not confirm|no connection"):
            relay.run_once()
        assert time.monotonic() - began < 3
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert {row.attempts for row in messages.all()} == {0}
    assert messages.pending().count() == 3
    wait_for(lambda: published(relay) == 4)
    assert {str(row.pk) for row in rows} <= set(arrivals(broker, "celery", queue))


def published(relay: Relay) -> int:
    with suppress(BrokerUnavailable):
        relay.run_once()
    return len(messages.published())


def test_a_broker_that_is_away_is_not_the_messages_fault(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue(3)
    with monkeypatch.context() as patched:
        patched.setenv("CELERY_BROKER_URL", "amqp://test:secret@127.0.0.1:1//")
        away = pytest.raises(BrokerUnavailable, match=r"no connection .*amqp://test:\*\*@127")
        with closing(Relay()) as relay, away as told:
            relay.run_once()
    assert "secret" not in str(told.value)
    assert set(messages.values_list("status", "attempts")) == {("pending", 0)}


def test_wrong_credentials_are_an_outage(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue(1)
    with monkeypatch.context() as patched:
        patched.setenv("CELERY_BROKER_URL", broker.url.replace("test:", "stranger:"))
        with closing(Relay()) as relay, pytest.raises(BrokerUnavailable, match="ACCESS_REFUSED"):
            relay.run_once()
    assert set(messages.values_list("status", "attempts")) == {("pending", 0)}


def test_a_connection_that_the_broker_closed_is_replaced(broker: Broker, relay: Relay) -> None:
    enqueue(1)
    assert relay.run_once() == RelayResult(published=1)
    rabbitmq: Any = broker.server
    vhost = broker.url.rpartition("/")[2]

    def connected() -> list[str]:
        return [c["name"] for c in rabbitmq.api("GET", "connections") if c.get("vhost") == vhost]

    wait_for(connected)
    for name in connected():
        rabbitmq.api("DELETE", f"connections/{quote(name, safe='')}")
    (row,) = enqueue(1)
    assert relay.run_once() == RelayResult(published=1)
    row.refresh_from_db()
    assert row.attempts == 0


def test_what_was_confirmed_is_settled_and_the_rest_released(broker: Broker) -> None:
    """The broker goes away in the middle: what it confirmed by then stays published."""
    enqueue(300)
    rabbitmq: Any = broker.server
    vhost = broker.url.rpartition("/")[2]

    class Leaving(Publisher):
        """Behind the first messages the virtual host goes away."""

        def publish(self, outgoing: Any, timeout: float) -> Any:
            first = super().publish(outgoing[:200], timeout)
            self.await_confirms(first)
            rabbitmq.delete_vhost(vhost)
            rest = super().publish(outgoing[200:], timeout)
            rest.messages = outgoing
            rest.confirmed |= first.confirmed
            return rest

    with closing(Relay()) as relay:
        relay.publisher = Leaving(current_app)
        with pytest.raises(BrokerUnavailable, match="no connection"):
            relay.run_once()
    assert messages.published().count() == 200
    assert messages.pending().filter(attempts=0).count() == 100
    rabbitmq.create_vhost(vhost)
    with closing(Relay()) as relay:
        assert relay.run_once() == RelayResult(published=100)

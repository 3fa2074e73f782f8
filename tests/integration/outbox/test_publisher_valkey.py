"""Valkey: pipelined, and a server that refuses every write is an outage."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis
from django.db import connection, transaction
from django.test import override_settings

from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.relay import Relay, RelayResult
from tests.integration.outbox.queues import arrivals, take_all
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.brokers import Broker

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.parametrize("broker", ["valkey"], indirect=True),
]

record: Any = tasks.record
messages = OutboxMessage.objects


@pytest.fixture
def relay(broker: Broker) -> Iterator[Relay]:
    with closing(Relay()) as relay:
        yield relay


@pytest.fixture
def client(broker: Broker) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker.url) as opened:
        yield opened


def enqueue(number: int, **options: Any) -> list[OutboxMessage]:
    with transaction.atomic():
        return messages.enqueue_many([record.s("x").set(**options)] * number)


@contextmanager
def configured(client: redis.Redis, **settings: object) -> Iterator[None]:
    """Change the server's settings for a while."""
    before = {
        name: client.config_get(name.replace("_", "-"))[name.replace("_", "-")] for name in settings
    }
    for name, value in settings.items():
        client.config_set(name.replace("_", "-"), str(value))
    try:
        yield
    finally:
        for name, value in before.items():
            client.config_set(name.replace("_", "-"), str(value))


def test_a_batch_is_pipelined(broker: Broker, relay: Relay, client: redis.Redis) -> None:
    rows = enqueue(500)
    relay.run_once()
    before: Any = client.info("stats")
    rows += enqueue(500)
    assert relay.run_once() == RelayResult(published=500)
    after: Any = client.info("stats")
    # A read is what the server takes from the socket at once.
    assert after["total_reads_processed"] - before["total_reads_processed"] < 100
    arrived = arrivals(broker, "celery")
    assert set(arrived) == {str(row.pk) for row in rows}
    assert set(arrived.values()) == {1}


def test_a_queue_that_no_worker_has_served_keeps_its_messages(broker: Broker, relay: Relay) -> None:
    plain, bound = enqueue(1, queue="unserved")[0], enqueue(1, queue="topical")[0]
    assert relay.run_once() == RelayResult(published=2)
    assert set(arrivals(broker, "unserved", "topical")) == {str(plain.pk), str(bound.pk)}


def test_a_message_for_an_exchange_goes_to_the_queues_that_are_bound(
    broker: Broker, relay: Relay
) -> None:
    enqueue(1, queue="topical", routing_key="topic.first")
    enqueue(1, queue="topical", routing_key="elsewhere")  # Redis drops it without a word
    assert relay.run_once() == RelayResult(published=2)
    assert len(take_all(broker, "topical")) == 1


@pytest.mark.parametrize("number", [1, 200])
def test_a_server_without_memory_is_an_outage(
    number: int, broker: Broker, relay: Relay, client: redis.Redis
) -> None:
    relay.run_once()
    rows = enqueue(number)
    used: Any = client.info("memory")
    with configured(client, maxmemory=used["used_memory"] // 2):
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match=r"every write: OutOfMemoryError"):
                relay.run_once()
    assert set(messages.values_list("status", "attempts")) == {("pending", 0)}
    assert relay.run_once() == RelayResult(published=number)
    assert set(arrivals(broker, "celery")) == {str(row.pk) for row in rows}


def test_a_server_that_runs_out_of_memory_on_the_way_is_an_outage(
    broker: Broker, relay: Relay, client: redis.Redis
) -> None:
    relay.run_once()
    with transaction.atomic():
        rows = messages.enqueue_many([record.s("x" * 20_000)] * 200)
    used: Any = client.info("memory")
    with configured(client, maxmemory=used["used_memory"] + 2_000_000):
        with pytest.raises(BrokerUnavailable, match="OutOfMemoryError"):
            relay.run_once()
        assert 0 < broker.queue_length() < 200
    assert not messages.filter(attempts__gt=0).exists()
    assert not messages.exclude(status__in=["pending", "published"]).exists()
    while relay.run_once().claimed:
        pass
    assert set(arrivals(broker, "celery")) == {str(row.pk) for row in rows}


@pytest.mark.parametrize("declared", [False, True])
def test_a_server_without_its_replicas_is_an_outage(
    declared: bool, relay: Relay, client: redis.Redis
) -> None:
    if declared:
        enqueue(1)
        relay.run_once()
    rows = enqueue(3)
    with (
        configured(client, min_replicas_to_write=1),
        pytest.raises(BrokerUnavailable, match="NOREPLICAS"),
    ):
        relay.run_once()
    assert messages.pending().filter(attempts=0).count() == len(rows)
    assert relay.run_once() == RelayResult(published=3)


def test_a_read_only_replica_is_an_outage(relay: Relay, client: redis.Redis) -> None:
    enqueue(3)
    client.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(BrokerUnavailable, match="ReadOnlyError"):
            relay.run_once()
    finally:
        client.replicaof("no", "one")
    assert set(messages.values_list("status", "attempts")) == {("pending", 0)}
    assert relay.run_once() == RelayResult(published=3)


def test_a_server_that_is_away_is_an_outage(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue(3)
    with monkeypatch.context() as patched:
        patched.setenv("CELERY_BROKER_URL", "redis://:secret@127.0.0.1:1/0")
        no_connection = pytest.raises(BrokerUnavailable, match="no connection")
        with closing(Relay()) as away, no_connection as told:
            away.run_once()
    assert "secret" not in str(told.value)
    assert set(messages.values_list("status", "attempts")) == {("pending", 0)}


def test_a_connection_that_the_server_closed_is_replaced(
    broker: Broker, relay: Relay, client: redis.Redis
) -> None:
    enqueue(1)
    assert relay.run_once() == RelayResult(published=1)
    client.client_kill_filter(_type="normal", skipme=True)
    rows = enqueue(10)
    assert relay.run_once() == RelayResult(published=10)
    assert {str(row.pk) for row in rows} <= set(arrivals(broker, "celery"))
    assert not messages.filter(attempts__gt=0).exists()


def test_a_row_that_cannot_be_read_stops_nobody(broker: Broker, relay: Relay) -> None:
    rows = enqueue(100)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE outbox_outboxmessage SET headers = '[' WHERE id = %s", [rows[50].pk])
    assert relay.run_once() == RelayResult(published=99, dead=1)
    assert len(arrivals(broker, "celery")) == 99


def test_a_wrong_type_under_the_queues_name_is_that_queues_problem(
    broker: Broker, relay: Relay, client: redis.Redis
) -> None:
    client.set("spoiled", "not a list")
    enqueue(1, queue="spoiled")
    enqueue(5)
    with override_settings(OUTBOX_BACKOFF_BASE=1000):
        assert relay.run_once() == RelayResult(published=5, failed=1)
    (row,) = messages.pending()
    assert "WRONGTYPE" in row.errors[0]["error"]
    assert len(arrivals(broker, "celery")) == 5


def test_a_missing_exchange_goes_unnoticed(broker: Broker, relay: Relay) -> None:
    """Redis drops what it cannot route without a word: docs/guarantees.md says so."""
    enqueue(1, exchange="nowhere", routing_key="odd")
    assert relay.run_once() == RelayResult(published=1)
    assert broker.queue_length() == 0


def test_priorities_have_queues_of_their_own(broker: Broker, relay: Relay) -> None:
    enqueue(1, priority=6)
    assert relay.run_once() == RelayResult(published=1)
    assert broker.queue_length() == 1
    (message,) = take_all(broker, "celery")
    assert message.properties["priority"] == 6

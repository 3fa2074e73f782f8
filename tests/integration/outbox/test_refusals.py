"""One message that the broker does not take, among 500 that it does."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import redis
from django.db import connection, transaction
from kombu import Queue

from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.relay import Relay
from tests.project.celery import app
from tests.project.tasks import record
from tests.servers.brokers import open_broker
from tests.servers.missing import missing
from tests.servers.rabbitmq import RabbitMQ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery.canvas import Signature
    from pytest_django.fixtures import Settings

    from tests.servers.brokers import Broker

pytestmark = pytest.mark.django_db(transaction=True)

LARGEST = 256 * 1024
MATES = 499

amqp = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
valkey = pytest.mark.parametrize("broker", ["valkey"], indirect=True)


def enqueue_with_mates(odd_one: Signature[Any]) -> OutboxMessage:
    """Enqueue the message in the middle of 499 others; return it."""
    signatures = [record.s(str(i)) for i in range(MATES)]
    signatures.insert(MATES // 2, odd_one)
    with transaction.atomic():
        return OutboxMessage.objects.enqueue_many(signatures)[MATES // 2]


def arrivals(broker: Broker, queue: str = "celery") -> Counter[str]:
    """Take everything out of the queue; return how often each message id was there."""
    seen: Counter[str] = Counter()
    with broker.connection() as opened:
        bound = Queue(queue)(opened.channel())
        while (message := bound.get(no_ack=True)) is not None:
            seen[str(message.properties["correlation_id"])] += 1
    return seen


def relay_batch() -> Any:
    with closing(Relay()) as relay:
        return relay.run_once()


def require_mates_published(broker: Broker, odd_one: OutboxMessage) -> None:
    """All 499 are published, most of them once; the odd one never arrived."""
    published = {str(id) for id in OutboxMessage.objects.published().values_list("id", flat=True)}
    assert len(published) == MATES
    seen = arrivals(broker)
    assert set(seen) - {str(odd_one.id)} == published
    assert sum(count == 1 for count in seen.values()) > MATES / 2, Counter(seen.values())


@amqp
def test_a_missing_exchange_is_one_messages_error(broker: Broker) -> None:
    odd_one = enqueue_with_mates(record.s("odd").set(exchange="nowhere", routing_key="odd"))

    result = relay_batch()

    odd_one.refresh_from_db()
    assert (result.published, result.failed, result.dead) == (MATES, 1, 0)
    assert (odd_one.status, odd_one.attempts) == ("pending", 1)
    assert "no exchange 'nowhere'" in odd_one.errors[0]["error"]
    require_mates_published(broker, odd_one)


@amqp
def test_an_unroutable_key_is_one_messages_error(broker: Broker) -> None:
    odd_one = enqueue_with_mates(record.s("odd").set(exchange="amq.topic", routing_key="odd"))

    result = relay_batch()

    odd_one.refresh_from_db()
    assert (result.published, result.failed, result.dead) == (MATES, 1, 0)
    assert "could not route it" in odd_one.errors[0]["error"]
    assert "'amq.topic'" in odd_one.errors[0]["error"]
    require_mates_published(broker, odd_one)


@pytest.fixture(scope="module")
def strict_rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ that takes no message above 256 KiB."""
    try:
        server = RabbitMQ(configuration=[f"max_message_size = {LARGEST}"])
    except Exception as error:
        missing(str(error))
    with server:
        yield server


@pytest.fixture
def strict_broker(strict_rabbitmq: RabbitMQ) -> Iterator[Broker]:
    for opened in open_broker("rabbitmq", strict_rabbitmq):
        with opened.serving_app():
            yield opened


def test_an_over_large_message_is_one_messages_error(strict_broker: Broker) -> None:
    odd_one = enqueue_with_mates(record.s("x" * (LARGEST + 1)))

    result = relay_batch()

    odd_one.refresh_from_db()
    assert (result.published, result.failed + result.dead) == (MATES, 1)
    assert "larger than configured max size" in odd_one.errors[0]["error"]
    require_mates_published(strict_broker, odd_one)


@amqp
def test_a_header_that_closes_the_connection_is_one_messages_error(broker: Broker) -> None:
    odd_one = enqueue_with_mates(record.s("odd"))
    # enqueue() refuses such a header, so it has to come by another way.
    too_long = odd_one.headers | {"long": "x" * 200_000}
    OutboxMessage.objects.filter(pk=odd_one.pk).update(headers=too_long)

    result = relay_batch()

    odd_one.refresh_from_db()
    assert (result.published, result.failed + result.dead) == (MATES, 1)
    assert len(odd_one.errors) == odd_one.attempts == 1
    require_mates_published(broker, odd_one)


@amqp
def test_a_header_that_cannot_be_encoded_is_dead_at_once(broker: Broker) -> None:
    odd_one = enqueue_with_mates(record.s("odd"))
    impossible = odd_one.headers | {"impossible": 2**80}
    OutboxMessage.objects.filter(pk=odd_one.pk).update(headers=impossible)

    result = relay_batch()

    odd_one.refresh_from_db()
    assert (result.published, result.failed, result.dead) == (MATES, 0, 1)
    assert (odd_one.status, odd_one.available_at) == ("dead", None)
    seen = arrivals(broker)
    assert sum(seen.values()) == len(seen) == MATES  # none of them twice


@amqp
def test_a_refused_message_is_dead_after_the_last_attempt(
    broker: Broker, settings: Settings
) -> None:
    settings.OUTBOX_MAX_ATTEMPTS = 3
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(
            record.s("odd").set(exchange="amq.topic", routing_key="odd")
        )
    with closing(Relay()) as relay:
        for attempt in (1, 2, 3):
            make_due(message)
            relay.run_once()
            message.refresh_from_db()
            assert message.attempts == attempt
            assert [error["attempt"] for error in message.errors] == list(range(1, attempt + 1))
    assert (message.status, message.available_at) == ("dead", None)

    assert OutboxMessage.objects.all().retry() == 1
    message.refresh_from_db()
    assert (message.status, message.attempts, len(message.errors)) == ("pending", 0, 3)


def make_due(message: OutboxMessage) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE outbox_outboxmessage SET available_at = clock_timestamp() WHERE id = %s",
            [message.pk],
        )


@amqp
def test_a_full_queue_refuses_and_the_message_stays(broker: Broker) -> None:
    with broker.connection() as opened:
        full: Any = Queue(
            "full", queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )
        full(opened.channel()).queue_declare()
    with transaction.atomic():
        OutboxMessage.objects.enqueue_many([record.s(str(i)).set(queue="full") for i in range(3)])

    result = relay_batch()

    assert (result.published, result.failed) == (1, 2)
    errors = [m.errors[0]["error"] for m in OutboxMessage.objects.pending()]
    assert len(errors) == 2
    assert all("basic.nack" in error for error in errors)


@amqp
def test_a_queue_that_no_worker_has_served_keeps_its_messages(broker: Broker) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record.s("early").set(queue="never-served"))

    assert relay_batch().published == 1
    assert arrivals(broker, "never-served") == {str(message.id): 1}


@valkey
def test_a_full_memory_is_an_outage_and_nobodys_fault(broker: Broker) -> None:
    with transaction.atomic():
        OutboxMessage.objects.enqueue_many([record.s(str(i)) for i in range(5)])
    with redis.Redis.from_url(broker.url) as client:
        client.config_set("maxmemory", 1)
        try:
            with closing(Relay()) as relay, pytest.raises(BrokerUnavailable, match="OutOfMemory"):
                relay.run_once()
        finally:
            client.config_set("maxmemory", 0)

    assert OutboxMessage.objects.pending().filter(attempts=0, errors=[]).count() == 5
    assert relay_batch().published == 5


@valkey
def test_a_missing_exchange_goes_unnoticed_by_redis(broker: Broker) -> None:
    """What docs/guarantees.md says: Redis drops what it cannot route without a word."""
    with transaction.atomic():
        OutboxMessage.objects.enqueue(record.s("odd").set(exchange="nowhere", routing_key="odd"))

    assert relay_batch().published == 1
    assert broker.queue_length(app.conf.task_default_queue) == 0

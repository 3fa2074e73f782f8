"""The sentences of the README, one test each, with a real relay, broker and worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, transaction

from idempotency.models import IdempotencyKey
from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.relay import Relay
from tests.helpers import wait_for
from tests.project.models import Effect
from tests.project.tasks import fail_guarded, record, record_once, record_once_per_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sample_project.processes import Process
    from tests.servers.brokers import Broker

COPIES = 20
LOCK = 4711


@pytest.fixture
def lock() -> Iterator[int]:
    """An advisory lock that this test holds until it lets go of it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        yield LOCK
        cursor.execute("SELECT pg_advisory_unlock_all()")


def relay_once(start_relay: Callable[..., Process]) -> None:
    relay = start_relay("--once")
    assert relay.wait(timeout=60) == 0, relay.output()


def publish_copies(broker: Broker, message: OutboxMessage, copies: int) -> None:
    """Publish what the relay publishes, past the relay."""
    with broker.connection() as connection, connection.Producer(auto_declare=False) as producer:
        for _ in range(copies):
            producer.publish(
                bytes(message.body),
                exchange=message.exchange,
                routing_key=message.routing_key,
                headers=message.headers,
                **message.properties,
            )


def forget(broker: Broker) -> int:
    """Have the broker lose its queue; return how many messages that were."""
    with broker.connection() as connection:
        channel: Any = connection.channel()
        return int(channel.queue_purge("celery"))


def status_of(message: OutboxMessage) -> str:
    message.refresh_from_db()
    return message.status


def test_a_message_is_published_if_and_only_if_its_transaction_commits(
    broker: Broker, start_relay: Callable[..., Process]
) -> None:
    with transaction.atomic():
        Effect.objects.create(label="order")
        OutboxMessage.objects.enqueue(record.s("committed"))
        with transaction.atomic():
            OutboxMessage.objects.enqueue(record.s("savepoint"))
            transaction.set_rollback(True)
    with transaction.atomic():
        Effect.objects.create(label="order that fails")
        OutboxMessage.objects.enqueue(record.s("rolled back"))
        transaction.set_rollback(True)
    assert broker.queue_length() == 0, "published before the relay ran"
    relay_once(start_relay)
    assert broker.queue_length() == 1
    assert [m.status for m in OutboxMessage.objects.all()] == ["published"]
    assert [effect.label for effect in Effect.objects.all()] == ["order"]


def test_a_message_is_marked_published_only_after_the_broker_has_confirmed_it(
    broker: Broker, transactional_db: None
) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record.s("patient"))
    relay = Relay()
    assert relay.run_once().published == 1
    with transaction.atomic():
        second = OutboxMessage.objects.enqueue(record.s("more patient"))
    broker.flush()
    broker.server.kill()
    with pytest.raises(BrokerUnavailable):
        relay.run_once()
    assert status_of(message) == "published"
    assert status_of(second) == "pending"
    assert second.attempts == 0
    broker.server.start()
    assert relay.run_once().published == 1
    assert status_of(second) == "published"
    assert broker.queue_length() == 2, "the broker forgot what it had confirmed"
    relay.close()


def test_what_the_broker_forgot_is_published_again_where_the_task_is_guarded(
    broker: Broker, start_worker: Callable[..., Process], settings: Any
) -> None:
    settings.OUTBOX_REDELIVER_AFTER = 0.2
    with transaction.atomic():
        guarded = OutboxMessage.objects.enqueue(record_once.s("guarded"))
        unguarded = OutboxMessage.objects.enqueue(record.s("unguarded"))
    relay = Relay()
    assert relay.drain().published == 2
    assert forget(broker) == 2
    wait_for(lambda: relay.run_once().published, message="It was not published again")
    relay.close()
    worker = start_worker()
    wait_for(lambda: status_of(guarded) == "executed", message=worker.output)
    assert guarded.redeliveries == 1
    assert status_of(unguarded) == "published"
    assert [effect.label for effect in Effect.objects.all()] == ["guarded"]


@pytest.mark.parametrize("broker", ["valkey"], indirect=True)
def test_what_is_forgotten_each_time_is_stuck_and_can_be_retried(
    broker: Broker, transactional_db: None, settings: Any
) -> None:
    settings.OUTBOX_REDELIVER_AFTER = 0.05
    settings.OUTBOX_MAX_REDELIVERIES = 2
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s("unlucky"))
    relay = Relay()
    for _ in range(3):
        wait_for(lambda: relay.run_once().published, message="It was not published again")
        assert forget(broker) == 1
    assert list(OutboxMessage.objects.stuck()) == [message]
    assert relay.run_once().claimed == 0
    assert OutboxMessage.objects.stuck().retry() == 1
    assert relay.run_once().published == 1
    relay.close()


def test_a_guarded_task_changes_the_database_once_however_often_it_is_delivered(
    broker: Broker, start_relay: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s("once"))
    relay_once(start_relay)
    publish_copies(broker, message, COPIES)
    worker = start_worker(concurrency=4)
    wait_for(
        lambda: worker.output().count(f"[{message.pk}] succeeded") > COPIES,
        message=worker.output,
    )
    assert Effect.objects.filter(label="once").count() == 1
    assert status_of(message) == "executed"
    assert IdempotencyKey.objects.filter(key=str(message.pk)).count() == 1


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_guarded_task_changes_the_database_once_per_business_key(
    broker: Broker, start_relay: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    with transaction.atomic():
        messages = [OutboxMessage.objects.enqueue(record_once_per_label.s("A")) for _ in range(3)]
        messages.append(OutboxMessage.objects.enqueue(record_once_per_label.s("B")))
    relay_once(start_relay)
    worker = start_worker(concurrency=4)
    wait_for(
        lambda: all(status_of(message) == "executed" for message in messages),
        message=worker.output,
    )
    assert sorted(effect.label for effect in Effect.objects.all()) == ["A", "B"]


def test_a_delivery_that_meets_its_living_twin_comes_back_later(
    broker: Broker,
    start_relay: Callable[..., Process],
    start_worker: Callable[..., Process],
    lock: int,
) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s("twins", lock=lock))
    relay_once(start_relay)
    publish_copies(broker, message, 1)
    worker = start_worker(concurrency=2)
    wait_for(lambda: "Retry in" in worker.output(), message=worker.output)
    assert not Effect.objects.exists()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock(%s)", [lock])
    wait_for(lambda: worker.output().count(f"[{message.pk}] succeeded") == 2, message=worker.output)
    assert Effect.objects.filter(label="twins").count() == 1


def test_a_worker_that_is_killed_leaves_nothing_behind_and_the_task_runs_again(
    broker: Broker,
    start_relay: Callable[..., Process],
    start_worker: Callable[..., Process],
    lock: int,
) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s("survivor", lock=lock))
    relay_once(start_relay)
    first = start_worker()
    wait_for(lambda: _waits_for(lock), message=first.output)
    first.kill()
    assert not Effect.objects.exists()
    assert not IdempotencyKey.objects.exists()
    assert status_of(message) == "published"
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock(%s)", [lock])
    second = start_worker()
    wait_for(lambda: status_of(message) == "executed", timeout=60, message=second.output)
    assert Effect.objects.filter(label="survivor").count() == 1


@pytest.mark.parametrize("broker", ["valkey"], indirect=True)
def test_a_final_failure_is_on_the_message(
    broker: Broker, start_relay: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(fail_guarded.s("why"))
    relay_once(start_relay)
    worker = start_worker()
    wait_for(lambda: status_of(message) == "failed", message=worker.output)
    assert "RuntimeError: why" in message.errors[-1]["error"]
    assert not Effect.objects.exists()
    assert not IdempotencyKey.objects.exists()


def _waits_for(lock: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks"
            " WHERE locktype = 'advisory' AND objid = %s AND NOT granted",
            [lock],
        )
        return bool(cursor.fetchone()[0])

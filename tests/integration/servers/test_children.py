"""Worker processes, killed and paused, on each broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.db import connection, transaction

from outbox.models import OutboxMessage
from tests.helpers import wait_for
from tests.project.models import Effect
from tests.project.tasks import record, record_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_project.processes import Process
    from tests.servers.brokers import Broker
    from tests.servers.children import Children

NAME_OF_DATABASE = "from django.db import connection; print(connection.settings_dict['NAME'])"


def test_a_worker_executes_on_the_test_database(
    broker: Broker, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker()
    record.delay("served")
    wait_for(
        lambda: Effect.objects.filter(label="served").exists(),
        message=worker.output,
    )
    worker.terminate()
    assert worker.wait(timeout=30) == 0


def test_each_test_has_a_broker_of_its_own(broker: Broker) -> None:
    assert broker.queue_length() == 0
    record.delay("left behind")
    assert broker.queue_length() == 1


test_no_other_test_leaves_anything_behind = test_each_test_has_a_broker_of_its_own


def test_a_task_survives_the_broker_and_the_worker(
    broker: Broker, start_worker: Callable[..., Process]
) -> None:
    first = start_worker()
    with connection.cursor() as cursor:
        # The task waits for this lock until the worker is dead.
        cursor.execute("SELECT pg_advisory_lock(1)")
        try:
            record.delay("survivor", lock=1)
            wait_for(lambda: "received" in first.output(), message=first.output)
            broker.server.kill()
            first.kill()
            assert not first.running
        finally:
            cursor.execute("SELECT pg_advisory_unlock(1)")
    broker.server.start()
    second = start_worker()
    wait_for(
        lambda: Effect.objects.filter(label="survivor").exists(),
        timeout=60,
        message=second.output,
    )


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_paused_worker_goes_on_where_it_was(
    broker: Broker, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker()
    worker.stop_signal()
    record.delay("paused")
    assert not Effect.objects.exists()
    worker.cont_signal()
    wait_for(Effect.objects.exists, message=worker.output)


@pytest.mark.parametrize("broker", ["redis_server"], indirect=True)
def test_a_child_gets_the_address_of_the_test_database(broker: Broker, children: Children) -> None:
    child = children.start("shell", "django", "shell", "--command", NAME_OF_DATABASE)
    assert child.wait(timeout=30) == 0
    assert connection.settings_dict["NAME"] in child.output().splitlines()


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_the_relay_is_a_process_too(
    broker: Broker,
    start_worker: Callable[..., Process],
    start_relay: Callable[..., Process],
) -> None:
    relay = start_relay()
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s("guarded"))
    worker = start_worker()
    wait_for(
        OutboxMessage.objects.filter(pk=message.pk, status="executed").exists,
        message=lambda: relay.output() + worker.output(),
    )
    assert Effect.objects.filter(label="guarded").count() == 1
    relay.terminate()
    assert relay.wait(timeout=30) == 0

"""Guarded tasks in real workers: duplicates, twins that meet, workers that die."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from celery import Celery
from django.db import connection

from idempotency.models import IdempotencyKey
from tests.helpers import wait_for
from tests.integration.idempotency import tasks
from tests.locks import held_lock
from tests.project.models import Effect
from tests.project.tasks import record_once

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sample_project.processes import Process
    from tests.servers.brokers import Broker

    StartWorker = Callable[..., Process]

LOCK = 815
INCLUDE = "--include=tests.integration.idempotency.tasks"
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


def body_waits() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return cursor.fetchone() is not None


def effects() -> list[str]:
    return list(Effect.objects.exclude(label="waited").values_list("label", flat=True))


def delivered(worker: Process, id: str, outcome: str) -> int:
    return sum(f"[{id}] {outcome}" in line for line in worker.output().splitlines())


def test_a_delivery_that_meets_a_live_twin_comes_again_and_recovers(
    broker: Broker, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The twin fails; the delivery that was put off does it, under its id, with no retry spent."""
    worker = start_worker(INCLUDE, concurrency=2)
    for task in (
        tasks.fail_once,
        tasks.fail_once_without_retries,
        tasks.fail_once_with_endless_retries,
    ):
        Effect.objects.all().delete()
        flag = tmp_path / "flag"
        flag.touch()
        id = str(uuid4())
        with held_lock(LOCK):
            for _ in range(2):
                task.apply_async((LOCK, str(flag)), task_id=id, headers={"told": "yes"})
            wait_for(body_waits, message=worker.output)
            wait_for(partial(delivered, worker, id, "retry"), message=worker.output)
        wait_for(effects, message=worker.output)

        assert effects() == [f"{id} retries=0 told=yes"]
        assert delivered(worker, id, "raised unexpected: RuntimeError") == 1
        assert IdempotencyKey.objects.get(key=id).message_id == id


def test_a_delivery_that_meets_a_live_twin_ends_as_its_duplicate(
    broker: Broker, start_worker: StartWorker
) -> None:
    """It is put off again and again."""
    id = str(uuid4())
    worker = start_worker(concurrency=2)

    with held_lock(LOCK):
        for _ in range(2):
            record_once.apply_async(("once", LOCK), task_id=id)
        wait_for(lambda: delivered(worker, id, "retry") >= 2, timeout=60, message=worker.output)
    wait_for(lambda: delivered(worker, id, "succeeded") == 2, message=worker.output)

    assert effects() == ["once"]
    assert delivered(worker, id, "raised") == 0


def test_every_delivery_of_a_message_has_one_effect(
    broker: Broker, start_worker: StartWorker
) -> None:
    ids = [str(uuid4()) for _ in range(20)]
    for id in ids * 3:
        record_once.apply_async((id,), task_id=id)
    worker = start_worker(concurrency=2)

    wait_for(
        lambda: all(delivered(worker, id, "succeeded") == 3 for id in ids),
        timeout=60,
        message=worker.output,
    )

    assert sorted(effects()) == sorted(ids)


def test_a_worker_that_is_killed_in_the_body_leaves_nothing_and_another_does_it(
    broker: Broker, start_worker: StartWorker
) -> None:
    """Until PostgreSQL notices that the dead worker is gone, its transaction has the key."""
    id = str(uuid4())
    with held_lock(LOCK):
        record_once.apply_async(("once", LOCK), task_id=id)
        killed = start_worker()
        wait_for(body_waits, message=killed.output)
        killed.kill()
        worker = start_worker()
        wait_for(lambda: delivered(worker, id, "retry"), timeout=60, message=worker.output)
        assert not IdempotencyKey.objects.exists()

    wait_for(lambda: delivered(worker, id, "succeeded"), timeout=60, message=worker.output)
    assert delivered(killed, id, "succeeded") == 0
    assert effects() == ["once"]


def test_a_tasks_own_retry_is_not_a_failure(broker: Broker, start_worker: StartWorker) -> None:
    id = str(uuid4())
    tasks.retry_itself.apply_async(("once",), task_id=id)
    worker = start_worker(INCLUDE)

    wait_for(lambda: delivered(worker, id, "succeeded"), message=worker.output)

    assert effects() == ["once"]
    assert delivered(worker, id, "retry") == 1


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_with_quorum_queues_it_comes_again_as_often(
    broker: Broker, start_worker: StartWorker
) -> None:
    """There a countdown is a part of the routing key, which a second one has to replace."""
    id = str(uuid4())
    worker = start_worker(
        concurrency=2, env={"DJANGO_SETTINGS_MODULE": "tests.integration.idempotency.quorum"}
    )
    producer = Celery(broker=broker.url, set_as_current=False)
    producer.conf.update(
        task_default_queue_type="quorum",
        task_default_exchange_type="topic",
        broker_transport_options={"confirm_publish": True},
    )

    with held_lock(LOCK):
        for _ in range(2):
            producer.send_task(record_once.name, ("once", LOCK), task_id=id)
        wait_for(lambda: delivered(worker, id, "retry") >= 3, timeout=60, message=worker.output)
    wait_for(lambda: delivered(worker, id, "succeeded") == 2, message=worker.output)

    assert effects() == ["once"]
    producer.close()

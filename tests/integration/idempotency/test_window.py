"""The window in real workers: what a relay stamps, what Celery's retries keep."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from django.db import transaction
from django.utils import timezone

from idempotency.conf import conf
from outbox.models import OutboxMessage
from tests.helpers import wait_for
from tests.integration.idempotency import tasks
from tests.integration.idempotency.test_deliveries import INCLUDE, delivered, effects
from tests.project.tasks import record_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_project.processes import Process
    from tests.servers.brokers import Broker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


def published(age: timedelta) -> dict[str, str]:
    return {"published_at": (timezone.now() - age).isoformat()}


def test_a_late_delivery_is_refused_and_the_message_has_failed(
    broker: Broker, start_worker: Callable[..., Process], start_relay: Callable[..., Process]
) -> None:
    """Retried, it is published anew, and its window counts from then."""
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s("once"))
    rows = OutboxMessage.objects.filter(pk=message.pk)
    # As if the message had been published long ago, and the broker hands it out only now.
    rows.update(status="published", published_at=timezone.now(), available_at=None)
    late = conf.TTL + timedelta(minutes=1)
    id = str(message.pk)
    record_once.apply_async(("once",), task_id=id, headers=published(late))
    worker = start_worker()
    wait_for(rows.failed().exists, timeout=60, message=worker.output)

    assert "WindowExpired" in rows.get().errors[0]["error"]
    assert delivered(worker, id, "retry") == 0
    assert effects() == []

    assert rows.retry() == 1
    assert start_relay("--once").wait(timeout=60) == 0
    wait_for(rows.executed().exists, timeout=60, message=worker.output)
    assert effects() == ["once"]


def test_a_chain_of_retries_ages_from_the_relays_publish(
    broker: Broker, start_worker: Callable[..., Process]
) -> None:
    id = str(uuid4())
    nearly = published(conf.TTL - timedelta(seconds=15))
    worker = start_worker(INCLUDE)
    tasks.retry_for_ever.apply_async(task_id=id, headers=nearly)
    wait_for(partial(delivered, worker, id, "retry"), timeout=60, message=worker.output)
    wait_for(partial(delivered, worker, id, "raised"), timeout=60, message=worker.output)
    assert "WindowExpired" in worker.output()

"""The Celery task for beat."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from celery import current_app
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule
from django.db import transaction

from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.tasks import relay as relay_task
from tests.project import tasks

if TYPE_CHECKING:
    from tests.unit.outbox.conftest import MemoryBroker

pytestmark = pytest.mark.django_db(databases=["default", "other"])
messages = OutboxMessage.objects


def enqueue(number: int, using: str = "default") -> None:
    with transaction.atomic(using=using):
        messages.enqueue_many([tasks.record.s("x")] * number, using=using)


def test_it_publishes_what_is_due(memory_broker: MemoryBroker, settings: Any) -> None:
    settings.OUTBOX_BATCH_SIZE = 2
    enqueue(5)
    enqueue(1, using="other")
    assert relay_task() == 5
    assert relay_task(using="other") == 1
    assert relay_task() == 0
    assert len(memory_broker.ids()) == 6


def test_it_says_when_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue(1)
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1")
    with pytest.raises(BrokerUnavailable):
        relay_task()
    assert messages.pending().filter(attempts=0).count() == 1


def test_beat_finds_it_by_its_name(memory_broker: MemoryBroker) -> None:
    assert os.environ.get("CELERY_BROKER_URL") is None
    app: Any = current_app
    scheduler: Any = Scheduler(app=app, lazy=True)
    entry: Any = ScheduleEntry(name="relay", task="outbox.relay", schedule=schedule(1), app=app)
    scheduler.apply_entry(entry, producer=scheduler.producer)
    (published,) = memory_broker.queue()
    assert published["headers"]["task"] == "outbox.relay"
    assert published["headers"]["ignore_result"] is True

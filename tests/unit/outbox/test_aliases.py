"""All that is done for a message is done on its alias: nothing gets through to the default one."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import shared_task
from django.db import connection, transaction

from idempotency import idempotent
from outbox.celery import OutboxTask
from outbox.models import OutboxMessage
from outbox.relay import Relay, RelayResult
from outbox.status_querysets import status_of
from outbox.tasks import purge
from outbox.tasks import relay as relay_task
from tests.project.models import Effect
from tests.project.tasks import record

if TYPE_CHECKING:
    from tests.unit.outbox.conftest import MemoryBroker

pytestmark = pytest.mark.django_db(databases=["other"])

messages = OutboxMessage.objects.using("other")


@shared_task
@idempotent(using="other")
def take_effect(label: str) -> None:
    Effect.objects.using("other").create(label=label)


@shared_task(base=OutboxTask)
def relayed(label: str) -> None:
    pass


class ToOther:
    """The outbox is on the alias "other"."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "other" if model is OutboxMessage else None


def test_a_query_on_the_default_alias_would_be_told() -> None:
    with pytest.raises(AssertionError, match="queries to 'default' are not allowed"):
        connection.cursor()


def test_a_message_from_its_transaction_to_its_receipt(memory_broker: MemoryBroker) -> None:
    with transaction.atomic(using="other"):
        message = OutboxMessage.objects.enqueue(take_effect.s("x"), using="other")
        again = OutboxMessage.objects.db_manager("other").enqueue(take_effect.s("y"))
    with closing(Relay("other")) as relay:
        assert relay.run_once() == RelayResult(published=2)
    for _ in range(2):
        take_effect.apply(("x",), task_id=str(message.pk)).get()
    assert Effect.objects.using("other").count() == 1
    message.refresh_from_db(using="other")
    assert message.status == "executed"
    messages.filter(pk=again.pk).update(available_at=None)
    assert messages.retry() == 1
    assert messages.discard() == 1


def test_the_tasks_for_beat(memory_broker: MemoryBroker) -> None:
    with transaction.atomic(using="other"):
        OutboxMessage.objects.enqueue(record.s("x"), using="other")
    assert relay_task(using="other") == 1
    assert purge(using="other", older_than=timedelta(days=1).total_seconds()) == 0
    assert status_of("other").pending == 0


def test_a_task_of_the_outbox_asks_the_router(settings: Any) -> None:
    settings.DATABASE_ROUTERS = [ToOther()]
    with transaction.atomic(using="other"):
        result = relayed.delay("x")
    assert str(messages.get().pk) == result.id

"""docs/guide/check-before-execute.md"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import transaction
from django.utils import timezone

from idempotency.exceptions import (
    KeyInProgress,
    KeyReused,
    OutcomeUnknown,
    StoredFailure,
)
from idempotency.models import IdempotencyKey
from outbox.models import OutboxMessage
from sample_project.gateway.client import Unknown
from sample_project.gateway.faults import Fault, Faults
from sample_project.guide.tasks import send_notification
from tests.helpers import wait_for
from tests.integration.guide import flawed
from tests.integration.guide.racing import Meeting, race

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_project.gateway.server import Gateway
    from sample_project.processes import Process

pytestmark = pytest.mark.django_db(transaction=True)


def deliver(text: str = "hello", recipient: str = "ada", notification: str = "n1") -> Any:
    return send_notification(recipient, notification, text)


def test_the_flaw_two_workers_both_find_nothing_and_both_send(tables: None) -> None:
    send = Meeting()
    race(lambda: flawed.notify("n1", "ada", send), racers=2)
    assert send.effects == 2


def test_the_flaw_a_crash_between_sending_and_noting_it_sends_again(tables: None) -> None:
    sent = []

    def crash_after_sending() -> None:
        sent.append(1)
        raise flawed.Killed

    with pytest.raises(flawed.Killed):
        flawed.notify("n1", "ada", crash_after_sending)
    flawed.notify("n1", "ada", lambda: sent.append(2))
    assert len(sent) == 2


def test_the_flaw_another_text_is_swallowed_and_the_answers_differ(tables: None) -> None:
    sent: list[str] = []
    assert flawed.notify("n1", "ada", lambda: sent.append("first")) == "Sent"
    assert flawed.notify("n1", "ada", lambda: sent.append("second")) == "Already sent"
    assert sent == ["first"]


def test_many_deliveries_at_once_send_once(gateway: Gateway) -> None:
    results = race(deliver)
    assert len(gateway.ledger.notifications) == 1
    assert "sent" in results
    assert all(result == "sent" or isinstance(result, KeyInProgress) for result in results)
    assert deliver() == "sent"
    assert len(gateway.ledger.notifications) == 1


def test_another_text_under_the_same_id_is_an_error(gateway: Gateway) -> None:
    deliver("first")
    with pytest.raises(KeyReused):
        deliver("second")
    assert deliver("second", recipient="bob") == "sent"


def test_what_may_have_been_sent_waits_for_a_person(gateway: Gateway) -> None:
    gateway.faults = Faults(hang=1, hang_seconds=10)
    with pytest.raises(Unknown):
        deliver()
    gateway.faults = Faults()
    with pytest.raises(StoredFailure):
        deliver()
    assert len(gateway.ledger.notifications) == 1
    assert IdempotencyKey.objects.release() == 1
    assert deliver() == "sent"


def test_after_a_worker_was_killed_the_outcome_is_unknown_until_somebody_says(
    gateway: Gateway,
) -> None:
    deliver()
    # As a worker leaves it that dies before it has heard the provider's answer.
    IdempotencyKey.objects.update(
        state=IdempotencyKey.State.IN_PROGRESS,
        result=None,
        finished_at=None,
        lease_expires_at=timezone.now() - timedelta(seconds=1),
    )
    with pytest.raises(OutcomeUnknown):
        deliver()
    assert IdempotencyKey.objects.resolve(completed="sent") == 1
    assert deliver() == "sent"
    assert len(gateway.ledger.notifications) == 1


@pytest.mark.parametrize("broker", ["valkey"], indirect=True)
def test_where_nothing_was_done_it_is_sent_later(
    gateway: Gateway, start_relay: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    gateway.faults = Faults([Fault.FAIL, Fault.FAIL])
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(send_notification.s("ada", "n1", "hello"))
    start_relay("--once").wait(timeout=60)
    worker = start_worker(env={"GUIDE_GATEWAY_URL": gateway.url})

    def executed() -> bool:
        message.refresh_from_db()
        return message.status == "executed"

    wait_for(executed, timeout=60, message=worker.output)
    assert gateway.faults.seen[Fault.FAIL] == 2
    assert len(gateway.ledger.notifications) == 1

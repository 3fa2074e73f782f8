"""Retrying by hand what is older than the window in which duplicates are recognised."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import transaction
from django.utils import timezone

from outbox.models import OutboxMessage
from tests.project.tasks import record_once

if TYPE_CHECKING:
    from django.test import Client

pytestmark = [pytest.mark.django_db, pytest.mark.database]

LIST = "/admin/outbox/outboxmessage/"
WINDOW = timedelta(hours=1)
OLD = timedelta(hours=2)


@pytest.fixture(autouse=True)
def window(settings: Any) -> None:
    settings.IDEMPOTENCY_TTL = WINDOW


def enqueue(age: timedelta = OLD, **changes: Any) -> OutboxMessage:
    """Write a message, that long ago; by default it was published and has failed."""
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s("label"))
    changes = {"status": "failed", "published_at": timezone.now(), **changes}
    OutboxMessage.objects.filter(pk=message.pk).update(
        created_at=timezone.now() - age, available_at=None, **changes
    )
    message.refresh_from_db()
    return message


def status_of(message: OutboxMessage) -> str:
    message.refresh_from_db()
    return message.status


def act(client: Client, action: str, *chosen: OutboxMessage, **form: str) -> list[str]:
    data = {"action": action, "_selected_action": [str(m.pk) for m in chosen], **form}
    response = client.post(LIST, data, follow=True)
    assert response.status_code == 200
    return [str(message) for message in response.context["messages"]]


@pytest.mark.parametrize("status", ["failed", "published", "expired"])
def test_retry_skips_what_was_published_and_is_older_than_the_window(status: str) -> None:
    """Its last publish is a moment ago: an earlier delivery may have been executed."""
    message = enqueue(status=status)
    assert OutboxMessage.objects.retry() == 0
    assert status_of(message) == status
    assert OutboxMessage.objects.older_than_window().get() == message


def test_retry_moves_what_is_within_the_window() -> None:
    message = enqueue(WINDOW - timedelta(minutes=1))
    assert OutboxMessage.objects.retry() == 1
    assert status_of(message) == "pending"


@pytest.mark.parametrize("status", ["dead", "expired"])
def test_retry_moves_what_was_never_published_however_old(status: str) -> None:
    message = enqueue(status=status, published_at=None)
    assert OutboxMessage.objects.retry() == 1
    assert status_of(message) == "pending"


def test_retry_moves_the_old_ones_when_it_is_told_to() -> None:
    message = enqueue()
    assert OutboxMessage.objects.retry(older_than_window=True) == 1
    assert status_of(message) == "pending"


def test_what_was_executed_is_not_retried_whatever_it_is_told() -> None:
    """The receipt committed with the key, so it is there when the key has long been purged."""
    message = enqueue(status="executed", executed_at=timezone.now())
    assert OutboxMessage.objects.retry(older_than_window=True) == 0
    assert status_of(message) == "executed"


def test_the_admins_retry_says_how_many_it_skipped_and_why(admin_client: Client) -> None:
    old, recent = enqueue(), enqueue(timedelta(0))
    [told] = act(admin_client, "retry", old, recent)
    assert told.startswith("1 message is pending again. 1 was skipped: 1 older than the window")
    assert (status_of(old), status_of(recent)) == ("failed", "pending")


def test_the_override_is_an_action_of_its_own_and_in_the_log(admin_client: Client) -> None:
    message = enqueue()
    told = act(admin_client, "retry_late", message, confirmed="yes")
    assert told == ["1 message is pending again."]
    assert status_of(message) == "pending"
    entry = LogEntry.objects.get(object_id=str(message.pk))
    assert entry.change_message == "Retried although older than the window; it was failed."
    assert entry.user.username == "admin"


def test_the_override_asks_first(admin_client: Client) -> None:
    message, other = enqueue(), enqueue(status="executed", executed_at=timezone.now())
    page = admin_client.post(
        LIST, {"action": "retry_late", "_selected_action": [str(message.pk), str(other.pk)]}
    ).content.decode()
    assert "1 message will be published again" in page
    assert "Yes, they took no effect" in page
    assert "neither dead nor failed nor expired nor stuck" in page
    assert 'name="action" value="retry_late"' in page
    assert status_of(message) == "failed"
    assert not LogEntry.objects.exists()


def test_the_override_needs_its_own_permission(client: Client) -> None:
    message = enqueue()
    user = User.objects.create_user("person", is_staff=True)
    names = ["view_outboxmessage", "retry_outboxmessage"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client.force_login(user)
    assert "Retry although older" not in client.get(LIST).content.decode()
    act(client, "retry_late", message, confirmed="yes")
    assert status_of(message) == "failed"

    user.user_permissions.add(Permission.objects.get(codename="retry_late_outboxmessage"))
    assert "Retry although older" in client.get(LIST).content.decode()
    act(client, "retry_late", message, confirmed="yes")
    assert status_of(message) == "pending"

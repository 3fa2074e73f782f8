"""Whether a message may still be waiting in its queue, as a claim tells."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import transaction

from outbox.conf import conf
from outbox.models import OutboxMessage

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("ahead", "queue", "status", "overtaken"),
    [
        pytest.param(timedelta(seconds=1), "celery", "executed", True, id="overtaken"),
        pytest.param(timedelta(seconds=-1), "celery", "executed", False, id="batches may overlap"),
        pytest.param(timedelta(seconds=1), "other", "executed", False, id="another queue"),
        pytest.param(timedelta(seconds=1), "celery", "published", False, id="no receipt"),
    ],
)
def test_message_is_overtaken(
    ahead: timedelta, queue: str, status: str, *, overtaken: bool
) -> None:
    later_at = MOMENT + conf.CLAIM_TIMEOUT + ahead
    _published("celery", MOMENT, available_at=MOMENT)
    executed_at = later_at if status == "executed" else None
    _published(queue, later_at, status=status, executed_at=executed_at)
    with transaction.atomic():
        (claimed,) = OutboxMessage.objects.all().claim(10, 1000)
    assert claimed.redelivery
    assert claimed.overtaken is overtaken


def _published(queue: str, at: datetime, **fields: object) -> None:
    OutboxMessage.objects.create(
        **{
            "task": "t",
            "body": b"",
            "queue": queue,
            "status": "published",
            "created_at": at,
            "published_at": at,
            "available_at": None,
            "awaits_receipt": True,
            **fields,
        }
    )

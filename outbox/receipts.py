"""Receipts: what became of a message's task, written on the message's row."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from celery.signals import task_failure
from django.db import router
from django.dispatch import receiver

from idempotency.signals import executed, replayed
from outbox.models import OutboxMessage

logger = logging.getLogger(__name__)


@receiver([executed, replayed], dispatch_uid="outbox.receipts.executed")
def record_executed(*, message_id: str, using: str, **kwargs: Any) -> None:
    """Write the receipt in the transaction of the guarded execution, or of its duplicate."""
    id = _uuid(message_id)
    if id is not None:
        OutboxMessage.objects.using(using).mark_executed(id)


@task_failure.connect(dispatch_uid="outbox.receipts.failed")
def record_failed(
    *, sender: Any = None, task_id: str = "", exception: object = None, **kwargs: Any
) -> None:
    """Record a final failure: Celery sends this signal when no retry follows."""
    id = _uuid(task_id)
    if id is None:
        return
    headers = getattr(getattr(sender, "request", None), "headers", None) or {}
    # The relay of another alias than the default one says which.
    using = headers.get("published_from") or router.db_for_write(OutboxMessage)
    try:
        OutboxMessage.objects.using(using).mark_failed(id, describe(exception))
    except Exception:
        # The worker must go on and report the task's own error.
        logger.exception("Could not record that the task of message %s failed.", id)


def describe(exception: object) -> str:
    """Return the exception's class and text, of which an exception may have none."""
    try:
        text = str(exception)
    except Exception:  # an exception of the project's may do anything
        text = "(its text cannot be had)"
    return f"{type(exception).__name__}: {text}"


def _uuid(value: str) -> UUID | None:
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        return None

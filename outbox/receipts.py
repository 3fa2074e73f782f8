"""Receipts: what became of a message's task, written on the message's row."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from celery import current_app
from celery.exceptions import Reject
from celery.signals import task_failure
from django.db import OperationalError, router
from django.dispatch import receiver

from idempotency.exceptions import StoreUnavailable
from idempotency.signals import receipt
from outbox.exceptions import describe
from outbox.models import OutboxMessage
from outbox.querysets import ORDERING_KEY, OutboxQuerySet

logger = logging.getLogger(__name__)

# Connection exceptions; ended by an administrator, a crash, a start-up, an idle timeout.
SESSION_ENDED = ("08", "57P0")


@receiver(receipt, dispatch_uid="outbox.receipts.executed")
def record_executed(*, message_id: str, **kwargs: Any) -> list[tuple[str, list[Any]]] | None:
    """Have the receipt written in the transaction of the guarded execution, or of its duplicate.

    The next message of its ordering key is opened there as well.
    """
    id = _uuid(message_id)
    return None if id is None else OutboxQuerySet.receipt(id, _ordering_key(message_id))


@task_failure.connect(dispatch_uid="outbox.receipts.failed")
def record_failed(
    *, sender: Any = None, task_id: str = "", exception: object = None, **kwargs: Any
) -> None:
    """Record a final failure: Celery sends this signal when no retry follows.

    A guarded task that lost its connection to the database, or to the store of its lease, has not
    failed by itself: its message stays published, and a relay publishes it again. So does one whose
    task rejects it, which Celery tells of as well.
    """
    id = _uuid(task_id)
    if id is None or isinstance(exception, Reject):
        return
    headers = getattr(getattr(sender, "request", None), "headers", None) or {}
    # The relay of another alias than the default one says which.
    using = headers.get("published_from") or router.db_for_write(OutboxMessage)
    try:
        messages = OutboxMessage.objects.using(using)
        if _lost_connection(exception) and messages.filter(pk=id, awaits_receipt=True):
            logger.warning(
                "The task of message %s lost its connection (%s). It has not failed for that: a "
                "relay publishes the message again.",
                id,
                describe(exception).partition("\n")[0],
            )
        else:
            messages.mark_failed(id, describe(exception))
    except Exception:
        # The worker must go on and report the task's own error.
        logger.exception("Could not record that the task of message %s failed.", id)


def _ordering_key(message_id: str) -> str:
    """Return the ordering key of the message that is being executed, if that is this one."""
    request = getattr(current_app.current_task, "request", None)
    if request is None or request.id != message_id:
        return ""
    key: Any = (request.headers or {}).get(ORDERING_KEY, "")
    return key if isinstance(key, str) else ""


def _lost_connection(exception: object) -> bool:
    """Tell whether a server went away, or ended the session, or could not be reached."""
    if isinstance(exception, StoreUnavailable):
        return True
    if not isinstance(exception, OperationalError):
        return False
    # The driver's own errors have no state: it was about to say or hear something, and could not.
    state = getattr(exception.__cause__, "sqlstate", "raised by somebody else")
    return state is None or state.startswith(SESSION_ENDED)


def _uuid(value: str) -> UUID | None:
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        return None

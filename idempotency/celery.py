"""Guarded Celery tasks: which delivery this is, and what becomes of one that is a duplicate."""

from __future__ import annotations

import functools
import random
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from celery import current_app
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from django.db import connections

from idempotency.decorators import guard_of

if TYPE_CHECKING:
    from celery import Task

    from idempotency.decorators import Guard
    from idempotency.exceptions import KeyInProgress

PUBLISHED_AT = "published_at"
"""The header in which a relay says when it published: ISO 8601, with the time zone."""

RETRY_AFTER = (1.0, 5.0)
"""Seconds: a delivery that met a live twin comes again somewhere between."""

CONTROL_FLOW = (Retry, Ignore, Reject, SoftTimeLimitExceeded)
"""Exceptions that end a delivery and not the task."""


def task_of(guard: Guard) -> Task[..., Any] | None:
    """Return the task whose function the guard is on, or None for a plain function."""
    running = current_app.current_task
    if running is not None and guard_of(running) is guard:
        return running
    # Called as task.run(), or a plain function.
    return _registered(guard, len(current_app.tasks))


@functools.cache
def _registered(guard: Guard, tasks: int) -> Task[..., Any] | None:
    """Look through the registry, once for each number of tasks in it."""
    return next((task for task in current_app.tasks.values() if guard_of(task) is guard), None)


def message_id(task: Task[..., Any]) -> str:
    """Return the id of the message that the task is executed for, "" if it is called directly."""
    request = task.request
    return "" if request.called_directly else request.id or ""


def published_at(task: Task[..., Any]) -> datetime | None:
    """Return when a relay last published the message; None for one that no relay published.

    Celery's retries keep the header, so a chain of them ages from the relay's last publish.
    """
    value: Any = (task.request.headers or {}).get(PUBLISHED_AT)
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None  # somebody's own header of that name
    return moment if moment.tzinfo is not None else None


def drop_dead_connection(using: str) -> None:
    """Let go of a connection that the server has ended, so that the task gets a fresh one.

    A worker that keeps its connections over tasks (``CELERY_DB_REUSE_MAX``) would fail each of
    them with it.
    """
    connection = connections[using]
    held = connection.connection
    if held is not None and held.closed and not connection.in_atomic_block:
        connection.close()


def retry_later(task: Task[..., Any], error: KeyInProgress) -> NoReturn:
    """Have the message delivered again, under its own id and at no cost to ``max_retries``.

    Raises ``Retry``; ``error`` itself where Celery runs tasks eagerly, because nothing would wait.
    """
    request = task.request
    if request.is_eager:
        raise error
    countdown = max(error.retry_after, random.uniform(*RETRY_AFTER))  # noqa: S311
    request.retries -= 1
    try:
        raise task.retry(exc=error, countdown=countdown)
    except Reject as reject:
        # Celery drops the message if it cannot publish the retry; the twin may yet fail.
        raise Reject(str(reject), requeue=True) from error
    finally:
        request.retries += 1


def never_retry(task: Task[..., Any]) -> None:
    """Keep ``autoretry_for`` from retrying an error that stays: ``retry()`` raises it at once.

    That is what Celery does for a request that it did not deliver, and autoretry has no other way
    out that is this request's own.
    """
    task.request.called_directly = True

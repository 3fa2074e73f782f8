"""Tasks that leave one ``Effect`` for each time they took effect."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import shared_task
from celery.exceptions import Reject
from django.db import connection, transaction

from idempotency import idempotent
from outbox.celery import OutboxTask
from outbox.models import OutboxMessage
from tests.project.models import Effect

if TYPE_CHECKING:
    from celery import Task


def take_effect(label: str, lock: int | None = None) -> int:
    """Write one effect; with ``lock``, first wait until nobody holds that advisory lock."""
    with transaction.atomic():
        if lock is not None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [lock])
        return Effect.objects.create(label=label).pk


@shared_task
def record(label: str, lock: int | None = None) -> int:
    """Unguarded: each delivery takes effect."""
    return take_effect(label, lock)


@shared_task
def fail(label: str) -> None:
    """Take effect, then fail."""
    take_effect(label)
    raise RuntimeError(label)


@shared_task
@idempotent
def record_once(label: str, lock: int | None = None) -> int:
    """Guarded: deliveries of one message take effect once."""
    return take_effect(label, lock)


@shared_task
@idempotent
def record_alone(label: str, key: str) -> int:
    """Guarded; fails while another one of the key is being executed."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_try_advisory_xact_lock(hashtext(%s)), pg_sleep(0.005)", [f"alone {key}"]
        )
        (alone, _) = cursor.fetchone()
    if not alone:
        raise RuntimeError(f"{label} is executed beside another one of {key}")
    return take_effect(label)


@shared_task
@idempotent(key="record:{label}")
def record_once_per_label(label: str, lock: int | None = None) -> int:
    """Guarded by a business key: a label takes effect once, whatever number of messages."""
    return take_effect(label, lock)


@shared_task
@idempotent
def fail_guarded(label: str) -> None:
    """Guarded, and its effect is rolled back each time."""
    take_effect(label)
    raise RuntimeError(label)


@shared_task
@idempotent
def reject_guarded(label: str) -> None:
    """Guarded; its message is turned down, and its effect rolled back."""
    take_effect(label)
    raise Reject(label)


def dump(task: Task[..., Any]) -> None:
    """Write everything that the worker knows of this delivery as a file in TEST_DUMPS."""
    written = Path(os.environ["TEST_DUMPS"]) / f"{uuid4()}.json"
    temporary = written.with_suffix(".tmp")
    temporary.write_text(json.dumps(as_told(vars(task.request))))
    temporary.rename(written)


def as_told(value: object) -> Any:
    """JSON in which types can be told apart."""
    if isinstance(value, dict):
        return {str(name): as_told(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_told(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": as_told(list(value))}
    return repr(value)


@shared_task(bind=True)
def show(self: Task[..., Any], /, *args: object, **kwargs: object) -> str:
    """Show how the worker sees this message."""
    dump(self)
    return "shown"


@shared_task(bind=True)
def show_and_fail(self: Task[..., Any], *args: object) -> None:
    """Show how the worker sees this message, then fail."""
    dump(self)
    raise RuntimeError("shown")


@shared_task(bind=True, max_retries=1)
def show_at_retry(self: Task[..., Any], *args: object) -> None:
    """Retry once; show how the worker sees the retried message."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    dump(self)


@shared_task(bind=True)
def show_child(self: Task[..., Any]) -> None:
    """Call ``show`` from within a task."""
    show.delay("child")
    dump(self)


@shared_task(bind=True)
def show_child_relayed(self: Task[..., Any]) -> None:
    """Call ``show`` from within a task, through the outbox."""
    with transaction.atomic():
        OutboxMessage.objects.enqueue(show.s("child"))
    dump(self)


@shared_task(bind=True, base=OutboxTask)
def show_relayed(self: Task[..., Any], *args: object) -> str:
    """``show``, through the outbox."""
    dump(self)
    return "shown"


@shared_task(bind=True, base=OutboxTask, max_retries=1)
def show_relayed_at_retry(self: Task[..., Any], *args: object) -> None:
    """``show_at_retry``, through the outbox."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    dump(self)


@shared_task(
    bind=True,
    base=OutboxTask,
    autoretry_for=(LookupError,),
    retry_backoff=False,
    default_retry_delay=0,
    max_retries=1,
)
def show_relayed_at_autoretry(self: Task[..., Any]) -> None:
    """Like ``show_relayed_at_retry``, and Celery does the retry."""
    if not self.request.retries:
        raise LookupError
    dump(self)


@shared_task
def call_show_relayed(rolls_back: bool) -> None:
    """Call ``show_relayed`` and a chain of it in a transaction, and roll that back if asked."""
    with transaction.atomic():
        show_relayed.delay("child")
        (show_relayed.s("first") | show_relayed.si("second")).delay()
        transaction.set_rollback(rolls_back)


@shared_task(bind=True, max_retries=1)
@idempotent
def record_once_at_retry(self: Task[..., Any], label: str) -> int:
    """Guarded; retried once, then takes effect."""
    if not self.request.retries:
        take_effect(label)
        raise self.retry(countdown=0)
    return take_effect(label)

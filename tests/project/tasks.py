"""Tasks that leave one ``Effect`` for each time they took effect."""

from __future__ import annotations

from celery import shared_task
from django.db import connection, transaction

from idempotency import idempotent
from tests.project.models import Effect


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

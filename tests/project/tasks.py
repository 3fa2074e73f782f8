"""Tasks that leave one ``Effect`` for each time they took effect."""

from __future__ import annotations

from celery import shared_task
from django.db import connection, transaction

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

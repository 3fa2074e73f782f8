"""The same task, one INSERT in a transaction, without a guard and with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import shared_task
from django.db import connection, transaction

from idempotency import idempotent
from tests.project.models import Effect

if TYPE_CHECKING:
    from celery import Task

KEY = """
INSERT INTO idempotency_idempotencykey (namespace, scope, key, fingerprint, state, result,
    message_id, created_at, finished_at, expires_at)
VALUES ('by hand', '', %s, '', 'completed', '', '', now(), now(), now() + interval '7 days')
ON CONFLICT DO NOTHING
"""
RECEIPT = """
UPDATE outbox_outboxmessage
SET status = 'executed', executed_at = now(), available_at = NULL WHERE id = %s
"""


def write(label: str, using: str) -> None:
    with transaction.atomic(using=using):
        Effect.objects.using(using).create(label=label)


@shared_task
def unguarded(label: str) -> None:
    write(label, "default")


@shared_task
@idempotent
def guarded(label: str) -> None:
    write(label, "default")


@shared_task
@idempotent
def guarded_flat(label: str) -> None:
    """In the guard's transaction, without a savepoint of its own."""
    Effect.objects.create(label=label)


@shared_task(bind=True)
def by_hand(self: Task[..., Any], label: str) -> None:
    """What a guard must write at least: the key and the receipt, with nothing around them."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(KEY, [self.request.id])
        Effect.objects.create(label=label)
        cursor.execute(RECEIPT, [self.request.id])


@shared_task
@idempotent(using="other")
def guarded_on_other(label: str) -> None:
    write(label, "other")

"""The same task, one INSERT in a transaction, without a guard and with one."""

from __future__ import annotations

from celery import shared_task
from django.db import transaction

from idempotency import idempotent
from tests.project.models import Effect


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
@idempotent(using="other")
def guarded_on_other(label: str) -> None:
    write(label, "other")

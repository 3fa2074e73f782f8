"""Guarded tasks for these tests; workers get them with ``--include``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery import shared_task

from idempotency import idempotent
from tests.project.models import Effect
from tests.project.tasks import take_effect


def _fail_once(request: Any, lock: int, flag: str) -> None:
    """Wait for the lock; fail as long as there is the flag, and take it away; tell the request."""
    take_effect("waited", lock)
    if Path(flag).exists():
        Path(flag).unlink()
        raise RuntimeError("for once")
    told = (request.headers or {}).get("told")
    Effect.objects.create(label=f"{request.id} retries={request.retries} told={told}")


@shared_task(bind=True)
@idempotent
def fail_once(self: Any, lock: int, flag: str) -> None:
    """With Celery's three retries, none of which it uses."""
    _fail_once(self.request, lock, flag)


@shared_task(bind=True, max_retries=0)
@idempotent
def fail_once_without_retries(self: Any, lock: int, flag: str) -> None:
    """With no retries at all."""
    _fail_once(self.request, lock, flag)


@shared_task(bind=True, max_retries=None)
@idempotent
def fail_once_with_endless_retries(self: Any, lock: int, flag: str) -> None:
    """With any number of retries."""
    _fail_once(self.request, lock, flag)


@shared_task(bind=True, max_retries=1, default_retry_delay=0)
@idempotent
def retry_itself(self: Any, label: str) -> int:
    """Retries once by itself; what it wrote before is rolled back."""
    Effect.objects.create(label=label)
    if self.request.retries == 0:
        raise self.retry(exc=RuntimeError("once more"))
    return int(self.request.retries)


@shared_task(bind=True, max_retries=None, default_retry_delay=1)
@idempotent
def retry_for_ever(self: Any) -> None:
    """Never gets anywhere."""
    raise self.retry(exc=RuntimeError("not yet"))

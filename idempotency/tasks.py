"""The Celery task for beat, for projects that do not run ``manage.py idempotency_purge``."""

from __future__ import annotations

from celery import shared_task

from idempotency.models import IdempotencyKey


@shared_task(name="idempotency.purge", ignore_result=True)
def purge(using: str = "default", batch_size: int = 1000, max_batches: int = 100) -> int:
    """Delete expired keys on one database alias; return how many.

    At most ``max_batches`` transactions of ``batch_size`` rows: the next run goes on.
    """
    keys = IdempotencyKey.objects.using(using)
    deleted = 0
    for _ in range(max_batches):
        batch = keys.purge(batch_size)
        deleted += batch
        if batch < batch_size:
            break
    return deleted

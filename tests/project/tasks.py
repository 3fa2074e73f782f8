from celery import shared_task

from tests.project.models import Effect


@shared_task
def record(label: str) -> int:
    """Unguarded: each delivery takes effect."""
    return Effect.objects.create(label=label).pk


@shared_task
def fail(label: str) -> None:
    """Take effect, then fail."""
    Effect.objects.create(label=label)
    raise RuntimeError(label)

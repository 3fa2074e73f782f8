"""Every delivery to a worker, whatever became of it: a row outside the guard's transaction."""

from __future__ import annotations

from typing import Any

from celery.signals import task_prerun

from tests.project.models import Delivery


@task_prerun.connect
def record_delivery(task_id: str = "", task: Any = None, **kwargs: Any) -> None:
    Delivery.objects.create(
        message_id=task_id, published_at=getattr(task.request, "published_at", "")
    )

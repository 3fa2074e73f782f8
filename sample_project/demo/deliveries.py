"""Notes each delivery when the worker begins it, and its outcome when that commits."""

from __future__ import annotations

import os
from typing import Any

from celery import Task, current_task
from celery.signals import task_prerun
from django.dispatch import receiver

from idempotency.decorators import guard_of
from idempotency.signals import executed, replayed
from sample_project.demo.models import Delivery


@task_prerun.connect(dispatch_uid="sample_project.demo.delivered")
def delivered(task_id: str, task: Task[..., Any], **_: Any) -> None:
    """Runs before the guard and in no transaction: a killed worker leaves this row."""
    if guard_of(task) is not None:
        delivery = Delivery.objects.create(message_id=task_id, worker_pid=os.getpid())
        task.request.update(demo_delivery=delivery.pk)


@receiver(executed, dispatch_uid="sample_project.demo.executed")
def delivery_executed(using: str, **_: Any) -> None:
    _end(Delivery.Outcome.EXECUTED, using)


@receiver(replayed, dispatch_uid="sample_project.demo.suppressed")
def delivery_suppressed(using: str, **_: Any) -> None:
    _end(Delivery.Outcome.SUPPRESSED, using)


def _end(outcome: Delivery.Outcome, using: str) -> None:
    """Runs in the guard's own transaction, so the outcome commits with the effects or not."""
    request = getattr(current_task, "request", None)
    delivery = getattr(request, "demo_delivery", None)
    if delivery is not None:
        Delivery.objects.using(using).filter(pk=delivery).update(outcome=outcome)

"""The Celery app of a peer's project, and the task that it publishes."""

from __future__ import annotations

import os
from typing import Any

from celery import shared_task
from django.utils.module_loading import import_string

PEER = os.environ["PEER"]

# django-celery-outbox is a Celery app that writes rows; django-reliable-outbox calls a plain one.
app_class = import_string(
    "django_celery_outbox.OutboxCelery" if PEER == "django_celery_outbox" else "celery.Celery"
)
app: Any = app_class("peer")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.set_default()


# The name of the task that our relay publishes: the messages are as long.
@shared_task(name="tests.project.tasks.record")
def record(label: str) -> None:
    """Published; nobody executes it."""


class CallTask:
    """A destination of django-reliable-outbox."""

    def deliver(self, envelope: Any) -> None:
        record.delay(**envelope.payload)

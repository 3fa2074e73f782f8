"""What the worker was handed, noted outside of what it guards."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class Delivery(models.Model):
    """A guarded task that a worker began: one row each time, whatever came of it."""

    class Outcome(models.TextChoices):
        # The worker was killed, or the task failed, or it was told to come back later.
        NONE = "", "none"
        # It committed the task's effects.
        EXECUTED = "executed", "executed"
        # It was recognised as a duplicate.
        SUPPRESSED = "suppressed", "suppressed"

    message_id = models.CharField(max_length=255, db_index=True)
    worker_pid = models.PositiveIntegerField()
    outcome = models.CharField(max_length=10, choices=Outcome, default=Outcome.NONE, blank=True)
    received_at = models.DateTimeField(db_default=Now())

    class Meta:
        verbose_name_plural = "deliveries"

    def __str__(self) -> str:
        return f"Delivery of {self.message_id} to {self.worker_pid}"

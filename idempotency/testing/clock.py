"""Time that passes in a test, without waiting for it."""

from __future__ import annotations

from datetime import timedelta

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, router, transaction
from django.db.models import DateTimeField, F, QuerySet

from idempotency.conf import duration

REMEMBERING = ("idempotency", "outbox")
"""The labels of the apps whose rows remember moments."""


def travel(by: float | timedelta, *, using: str = DEFAULT_DB_ALIAS) -> None:
    """Let so much time pass, in seconds or as a timedelta, for what the database remembers.

    PostgreSQL's clock cannot be moved, so its past is: every moment in every row of
    ``idempotency`` and ``outbox`` on that alias (``expires_at``, ``lease_expires_at``,
    ``finished_at``, ``available_at``, ``published_at`` …) becomes so much earlier. A key then
    expires, a lease is stale, a message is due or ready to be purged, as if the time had passed.

    Not moved: Python's clock, your own tables, leases that are kept in Redis, and what a message
    that is published already carries in its headers. A lease whose owner is alive is extended
    again by its next heartbeat.
    """
    by = duration(by, "by")
    with transaction.atomic(using=using):
        for config in apps.get_app_configs():
            if config.label not in REMEMBERING:
                continue
            for model in config.get_models():
                moments = [
                    field.name
                    for field in model._meta.concrete_fields
                    if isinstance(field, DateTimeField)
                ]
                if moments and router.allow_migrate_model(using, model):
                    earlier = {name: F(name) - by for name in moments}
                    QuerySet(model, using=using).update(**earlier)

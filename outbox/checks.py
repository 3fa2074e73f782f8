"""System checks: a configuration under which a promise would not hold is refused at start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from celery import _state, current_app
from celery.app import app_or_default
from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as CheckWarning
from django.db import connections, router

from idempotency.checks import WINDOW, guarded_tasks, too_short
from idempotency.conf import conf as idempotency_conf
from outbox.conf import conf
from outbox.exceptions import describe


@register(Tags.compatibility, WINDOW)
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Every OUTBOX_* setting is known and of its type."""
    return [Error(problem, id="outbox.E001") for problem in conf.problems()]


@register(Tags.compatibility)
def check_confirms(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """On AMQP, the app's own publishes are confirmed too: a task's retry is a publish."""
    app = current_app
    try:
        transport = app.connection_for_write().transport_cls
    except (KeyError, ValueError, ImportError, AttributeError) as error:
        # AttributeError is what kombu's Redis transport ends with where redis is not installed.
        return [
            Error(
                f"Celery makes no connection of its broker's address: {describe(error)}.",
                hint="Set CELERY_BROKER_URL to an address whose transport is installed: for Redis "
                "and Valkey, pip install celery[redis].",
                id="outbox.E005",
            )
        ]
    if transport not in ("amqp", "amqps", "pyamqp"):
        return []
    if (app.conf.broker_transport_options or {}).get("confirm_publish"):
        return []
    return [
        Error(
            "Celery does not wait for the broker's confirms: a retry that the broker never stored "
            "would lose the task.",
            hint="Set CELERY_BROKER_TRANSPORT_OPTIONS = {'confirm_publish': True}.",
            id="outbox.E002",
        )
    ]


@register(Tags.compatibility)
def check_default_app(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Other threads have the Celery app that this one has."""
    app: Any = app_or_default()
    state: Any = _state  # its types leave the default out
    if app is state.default_app:
        return []
    return [
        CheckWarning(
            f"The Celery app {app.main!r} is current in this thread only: what another thread "
            "enqueues or sends is made by an app that knows none of its settings.",
            hint="Call app.set_default() where the app is made.",
            id="outbox.W002",
        )
    ]


@register(Tags.compatibility, WINDOW)
def check_window(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> Iterator[CheckMessage]:
    """Duplicates are recognised for longer than the relay goes on publishing a message."""
    if _unreadable():
        return
    # Each wait is twice as long as the one before; a century is as good as the longest.
    doublings = min(conf.MAX_REDELIVERIES, 40)
    longest = timedelta(days=36_500)
    span = longest
    if longest / 2**doublings > conf.REDELIVER_AFTER:
        span = conf.REDELIVER_AFTER * (2**doublings - 1)
    for task in guarded_tasks():
        yield from too_short(
            task,
            span,
            "the relay's redeliveries (OUTBOX_REDELIVER_AFTER, doubled OUTBOX_MAX_REDELIVERIES "
            "times): a message is published again when its keys are forgotten",
            "or redeliver sooner or less often",
            "outbox.E004",
        )


@register(Tags.compatibility)
def check_retention(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """A message is there for as long as a duplicate of it may come."""
    if _unreadable() or conf.RETENTION >= idempotency_conf.TTL:
        return []
    return [
        CheckWarning(
            f"Messages are purged {conf.RETENTION} after they were executed, and their duplicates "
            f"are recognised for {idempotency_conf.TTL}: in between nobody can look up what became "
            "of a message.",
            hint="Set OUTBOX_RETENTION (seconds or timedelta) to IDEMPOTENCY_TTL or more.",
            id="outbox.W001",
        )
    ]


@register(Tags.database)
def check_database(
    app_configs: Sequence[AppConfig] | None, databases: Iterable[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """The outbox's tables are on PostgreSQL."""
    from outbox.models import OutboxMessage

    return [
        Error(
            f"The database {alias!r} is {connections[alias].display_name}, and the outbox needs "
            "PostgreSQL (row locks that skip what others hold).",
            hint="Use django.db.backends.postgresql, or keep the outbox off it with a router.",
            id="outbox.E003",
        )
        for alias in databases or ()
        if router.allow_migrate_model(alias, OutboxMessage)
        and connections[alias].vendor != "postgresql"
    ]


def _unreadable() -> bool:
    """Whether a setting has no value to compare; the checks of the settings say which."""
    return any(conf.problems()) or any(idempotency_conf.problems())

"""System checks: a configuration under which a promise would not hold is refused at start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections, router
from django.utils.module_loading import autodiscover_modules

from idempotency.conf import conf
from idempotency.decorators import guard_of

if TYPE_CHECKING:
    from celery import Task


@register(Tags.compatibility)
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Every IDEMPOTENCY_* setting is known and of its type."""
    return [Error(problem, id="idempotency.E001") for problem in conf.problems()]


@register(Tags.compatibility)
def check_tasks(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> Iterator[CheckMessage]:
    """The broker keeps the message of a guarded task until the task is done."""
    for task in _guarded_tasks():
        if not task.acks_late:
            yield Error(
                f"The guarded task {task.name} is acknowledged before it runs: if its worker "
                "dies, it is lost.",
                hint="Set CELERY_TASK_ACKS_LATE = True, or acks_late=True on the task.",
                id="idempotency.E002",
            )
        if not task.reject_on_worker_lost:
            yield Error(
                f"The guarded task {task.name} is acknowledged when its worker process is "
                "killed: it is lost.",
                hint=(
                    "Set CELERY_TASK_REJECT_ON_WORKER_LOST = True, or reject_on_worker_lost=True "
                    "on the task."
                ),
                id="idempotency.E003",
            )


@register(Tags.database)
def check_database(
    app_configs: Sequence[AppConfig] | None, databases: Iterable[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """The table of keys is on PostgreSQL."""
    from idempotency.models import IdempotencyKey

    return [
        Error(
            f"The database {alias!r} is {connections[alias].display_name}, and idempotency needs "
            "PostgreSQL (advisory locks that end with their transaction).",
            hint="Use django.db.backends.postgresql, or keep idempotency off it with a router.",
            id="idempotency.E004",
        )
        for alias in databases or ()
        if router.allow_migrate_model(alias, IdempotencyKey)
        and connections[alias].vendor != "postgresql"
    ]


def _guarded_tasks() -> list[Task[..., Any]]:
    if find_spec("celery") is None:
        return []
    from celery import current_app

    # Not loader.import_default_modules(): its signal has Celery run these very checks.
    autodiscover_modules("tasks")
    tasks = [current_app.tasks[name] for name in sorted(current_app.tasks)]
    return [task for task in tasks if guard_of(task) is not None]

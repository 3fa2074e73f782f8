"""System checks: a configuration under which a promise would not hold is refused at start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Tags, register, run_checks
from django.db import connections, router
from django.utils.module_loading import autodiscover_modules

from idempotency.conf import conf
from idempotency.decorators import guard_of

if TYPE_CHECKING:
    from celery import Task

WINDOW = "idempotency_window"
"""The tag of the checks without which a worker does not start."""

VISIBILITY_TIMEOUT = 3600
"""Seconds: the default of kombu's Redis transport."""


@register(Tags.compatibility, WINDOW)
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Every IDEMPOTENCY_* setting is known and of its type."""
    return [Error(problem, id="idempotency.E001") for problem in conf.problems()]


@register(Tags.compatibility)
def check_tasks(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> Iterator[CheckMessage]:
    """The broker keeps the message of a guarded task until the task is done."""
    for task in guarded_tasks():
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


@register(Tags.compatibility)
def check_redis(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> Iterator[CheckMessage]:
    """A guarded task whose leases are in Redis has a server and the package for it."""
    for task in guarded_tasks():
        guard = guard_of(task)
        if guard is None or not guard.is_in_redis:
            continue
        if not conf.REDIS_URL:
            yield Error(
                f'The guarded task {task.name} has store="redis", and IDEMPOTENCY_REDIS_URL names '
                "no server: each of its deliveries would fail.",
                hint='Set IDEMPOTENCY_REDIS_URL, or leave store="redis" out.',
                id="idempotency.E007",
            )
        if find_spec("redis") is None:
            yield Error(
                f'The guarded task {task.name} has store="redis", which needs the package redis.',
                hint="Install this package with its extra: […][redis].",
                id="idempotency.E008",
            )


@register(Tags.compatibility, WINDOW)
def check_window(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> Iterator[CheckMessage]:
    """Duplicates are recognised for longer than the broker and the task itself may bring them."""
    if any(conf.problems()):
        return  # and check_settings says which
    for task in guarded_tasks():
        yield from too_short(
            task,
            _visibility_timeout(),
            "the broker's visibility_timeout: the message of a worker that died comes back after "
            "that",
            "or a shorter visibility_timeout in CELERY_BROKER_TRANSPORT_OPTIONS",
            "idempotency.E005",
        )
        yield from too_short(
            task,
            _retry_span(task),
            "the task's own retries (max_retries times their delay): the last ones are refused",
            "or fewer or quicker retries",
            "idempotency.E006",
        )


def too_short(
    task: Task[..., Any], span: timedelta, what: str, remedy: str, id: str
) -> Iterator[CheckMessage]:
    """Yield an error if the window of a guarded task is shorter than a span of its deliveries."""
    guard = guard_of(task)
    if guard is not None and guard.ttl < span:
        yield Error(
            f"Duplicates of the guarded task {task.name} are recognised for {guard.ttl}, which is "
            f"shorter than the {span} of {what}.",
            hint=f"Set IDEMPOTENCY_TTL (or the guard's ttl=) to more than {span}, {remedy}.",
            id=id,
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


def watch_worker_start() -> None:
    """Keep a worker from starting while its window is too short.

    Celery runs the checks when a worker starts, and ignores what they find.
    """
    if "celery" not in sys.modules:
        return  # nothing here is a worker
    from celery.signals import worker_init

    worker_init.connect(require_window, dispatch_uid="idempotency.window")


def require_window(**kwargs: Any) -> None:
    """End the process with the errors of the window's checks, if there are any.

    Not with ``CELERY_SKIP_CHECKS`` in the environment, nor for errors in
    ``SILENCED_SYSTEM_CHECKS``.
    """
    if os.environ.get("CELERY_SKIP_CHECKS"):
        return
    found = run_checks(tags=[WINDOW])
    errors = [message for message in found if message.is_serious() and not message.is_silenced()]
    if errors:
        reasons = [f"{error.id}: {error.msg} {error.hint or ''}".rstrip() for error in errors]
        raise SystemExit("\n".join(["This worker does not start.", *reasons]))


def _visibility_timeout() -> timedelta:
    """How long a broker without acknowledgements of its own keeps a message from others."""
    from celery import current_app

    try:
        transport = current_app.connection_for_read().transport_cls
    except (KeyError, ValueError, ImportError, AttributeError):
        return timedelta(0)  # no broker at that address: whoever connects to it says so
    if transport not in ("redis", "rediss", "sentinel"):
        return timedelta(0)
    options = current_app.conf.broker_transport_options or {}
    return timedelta(seconds=options.get("visibility_timeout", VISIBILITY_TIMEOUT))


def _retry_span(task: Task[..., Any]) -> timedelta:
    """The longest time between a task's first execution and its last retry; 0 where unbounded.

    What a call of ``retry(countdown=…)`` asks for is not known here.
    """
    retries = task.max_retries
    if retries is None:
        return timedelta(0)
    backoff = getattr(task, "retry_backoff", False)
    if not backoff or not getattr(task, "autoretry_for", ()):
        return timedelta(seconds=retries * (task.default_retry_delay or 0))
    longest = getattr(task, "retry_backoff_max", 600)
    # A power of 40 is longer than any bound.
    delays = (min(int(backoff) * 2 ** min(n, 40), longest) for n in range(retries))
    return timedelta(seconds=sum(delays))


def guarded_tasks() -> list[Task[..., Any]]:
    """Return the guarded tasks of the default Celery app; none where there is no Celery."""
    if find_spec("celery") is None:
        return []
    from celery import current_app

    # Not loader.import_default_modules(): its signal has Celery run these very checks.
    autodiscover_modules("tasks")
    tasks = [current_app.tasks[name] for name in sorted(current_app.tasks)]
    return [task for task in tasks if guard_of(task) is not None]

"""For the tests of projects that use the outbox: no broker, no worker, no waiting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from celery import Task, current_app
from celery.canvas import Signature
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import QuerySet

from outbox import wire
from outbox.models import OutboxMessage

MOST = 10_000


def drain_outbox(*, using: str = DEFAULT_DB_ALIAS) -> int:
    """Run every pending message in this process, and what their tasks enqueue; return how many.

    Like Celery's eager mode, but from the table, so what a rollback took back does not run. A
    countdown or eta is not waited for. Callbacks and the rest of a chain run as well. The first
    exception of a task is raised; its message is failed then, and the others stay pending.
    Raises ``RuntimeError`` after 10,000 messages: tasks that enqueue each other without end.
    """
    messages = OutboxMessage.objects.using(using)
    ran = 0
    while (message := messages.pending().order_by("available_at", "id").first()) is not None:
        if ran == MOST:
            raise RuntimeError(f"{MOST} messages ran and {message} is still pending: a loop?")
        with transaction.atomic(using=using):
            messages.settle([message.id])
        _run(message)
        ran += 1
    return ran


def assert_enqueued(
    task: Task[Any, Any] | str,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    key: str | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> OutboxMessage:
    """Return the newest message of the task with these arguments and key; fail if there is none.

    ``args`` and ``kwargs`` are compared with how the task was called; leave out what does not
    matter. Raises ``AssertionError`` that lists what is in the outbox instead.
    """
    name = task if isinstance(task, str) else task.name
    others = []
    messages: QuerySet[OutboxMessage] = OutboxMessage.objects.using(using)
    for message in messages.order_by("-created_at", "-id"):
        found_args, found_kwargs = message.arguments(_accept(message))
        if (
            message.task == name
            and (args is None or list(args) == list(found_args))
            and (kwargs is None or dict(kwargs) == found_kwargs)
            and (key is None or key == message.key)
        ):
            return message
        others.append(f"{message.task} {found_args} {found_kwargs} key={message.key!r}")
    wanted = f"{name} args={args} kwargs={kwargs} key={key!r}"
    raise AssertionError("\n  ".join([f"{wanted} is not in the outbox, which holds:", *others]))


def _run(message: OutboxMessage) -> None:
    task = current_app.tasks[message.task]
    args, kwargs, embedded = wire.decode(
        bytes(message.body), message.headers, message.properties, _accept(message)
    )
    value = _apply(task, message.id, args, kwargs, message.headers)
    for callback in embedded.get("callbacks") or ():
        _signature(callback).apply((value,), throw=True)
    for step in reversed(embedded.get("chain") or ()):
        value = _signature(step).apply((value,), throw=True).result


def _signature(step: Mapping[str, Any]) -> Signature[Any]:
    return Signature.from_dict(dict(step), app=current_app)


def _apply(
    task: Task[Any, Any], id: UUID, args: Any, kwargs: Any, headers: Mapping[str, Any]
) -> Any:
    return task.apply(args, kwargs, task_id=str(id), headers=dict(headers), throw=True).result


def _accept(message: OutboxMessage) -> list[str]:
    return [str(message.properties["content_type"])]

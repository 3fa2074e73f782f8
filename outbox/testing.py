"""For the tests of projects that use the outbox: no broker, no worker, no waiting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from celery import Task, current_app
from celery.canvas import Signature
from celery.utils.functional import maybe_list
from django.db import DEFAULT_DB_ALIAS, DatabaseError, transaction
from django.db.models import QuerySet
from kombu.exceptions import SerializationError
from kombu.serialization import dumps, loads, registry  # type: ignore[attr-defined]

from outbox import wire
from outbox.exceptions import describe
from outbox.models import OutboxMessage
from outbox.ordering_querysets import advance
from outbox.querysets import OutboxQuerySet

MOST = 10_000


def drain_outbox(*, using: str = DEFAULT_DB_ALIAS) -> int:
    """Run every pending message in this process, and what their tasks enqueue; return how many.

    Like Celery's eager mode, but from the table, so what a rollback took back does not run. A
    countdown or eta is not waited for. Messages of one ordering key run in their order. Callbacks
    and the rest of a chain run as well. The first exception of a task is raised; its message is
    failed then, and the others stay pending. Raises ``RuntimeError`` after 10,000 messages: tasks
    that enqueue each other without end.
    """
    messages = OutboxMessage.objects.using(using)
    ran = 0
    while (message := _next(messages)) is not None:
        if ran == MOST:
            raise RuntimeError(f"{MOST} messages ran and {message} is still pending: a loop?")
        with transaction.atomic(using=using):
            messages.settle([message.id])
        _run(message, using)
        if message.ordering_key and message.awaits_receipt:
            # Guards may be switched off, and write no receipt.
            messages.mark_executed(message.id)
        elif message.ordering_key:
            with transaction.atomic(using=using):
                advance(using, [message.ordering_key])
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
    given: Any = task
    if isinstance(given, Signature):
        raise TypeError(f"Give the task, and args= and kwargs= beside it, not a signature: {given}")
    name = task if isinstance(task, str) else task.name
    others = []
    messages: QuerySet[OutboxMessage] = OutboxMessage.objects.using(using)
    for message in messages.order_by("-created_at", "-id"):
        found_args, found_kwargs = message.arguments(_accept(message))
        if (
            message.task == name
            and (args is None or _is_carried(list(args), list(found_args), message))
            and (kwargs is None or _is_carried(dict(kwargs), found_kwargs, message))
            and (key is None or key == message.key)
        ):
            return message
        others.append(f"{message.task} {found_args} {found_kwargs} key={message.key!r}")
    wanted = f"{name} args={args} kwargs={kwargs} key={key!r}"
    raise AssertionError("\n  ".join([f"{wanted} is not in the outbox, which holds:", *others]))


def _is_carried(called_with: Any, found: Any, message: OutboxMessage) -> bool:
    """Tell whether the arguments became those: a tuple, for instance, is a list in JSON."""
    if called_with == found:
        return True
    (content_type,) = _accept(message)
    try:
        _, encoding, content = dumps(called_with, registry.type_to_name[content_type])
        carried: Any = loads(content, content_type, encoding, accept=[content_type])
    except SerializationError:  # what equals anything, for instance
        return False
    return bool(carried == found)


def _next(messages: OutboxQuerySet) -> OutboxMessage | None:
    return messages.pending().filter(blocked=False).order_by("available_at", "id").first()


def _run(message: OutboxMessage, using: str) -> None:
    args, kwargs, embedded = wire.decode(
        bytes(message.body), message.headers, message.properties, _accept(message)
    )
    follow: dict[str, Any] = {
        "link": embedded.get("callbacks"),
        "link_error": embedded.get("errbacks"),
        "chain": embedded.get("chain"),
    }
    try:
        headers = message.headers
        _execute(message.task, str(message.id), args, kwargs, headers=headers, follow=follow)
    except Exception as error:
        # It may have broken the transaction that the test is in, and then this would hide it.
        with suppress(DatabaseError):
            OutboxMessage.objects.using(using).mark_failed(message.id, describe(error))
        raise


def _execute(
    name: str, id: str | None, args: Any, kwargs: Any, *, headers: Any, follow: Mapping[str, Any]
) -> None:
    """Run a task and what follows it, as a worker would."""
    task = current_app.tasks[name]
    # An errback that takes the request is called with it by Celery, in the process. Left to itself
    # Celery would publish the rest of what follows.
    link_error: Any = follow.get("link_error")
    result = task.apply(
        args, kwargs, task_id=id, headers=dict(headers), link_error=link_error, throw=False
    )
    if result.failed():
        raise result.result
    for callback in maybe_list(follow.get("link")) or ():
        _call(callback, result.result)
    if chain := follow.get("chain"):
        _call(chain[-1], result.result, chain[:-1])


def _call(step: Mapping[str, Any], value: Any, rest: Sequence[Any] = ()) -> None:
    """Call a signature with the value of what came before; ``rest`` ends with the next step."""
    signature: Any = Signature.from_dict(dict(step), app=current_app)
    options = signature.options
    if step.get("subtask_type") == "group":
        for member in signature.tasks:
            _call(member, value, rest)
    elif step.get("subtask_type") == "chain":
        steps = signature.unchain_tasks()
        _call(steps[0], value, [*rest, *reversed(steps[1:])])
    else:
        args = signature.args if signature.immutable else (value, *signature.args)
        follow = {**options, "chain": [*rest, *(options.get("chain") or ())]}
        _execute(
            signature.task,
            options.get("task_id"),
            args,
            signature.kwargs,
            headers=options.get("headers") or {},
            follow=follow,
        )


def _accept(message: OutboxMessage) -> list[str]:
    return [str(message.properties["content_type"])]

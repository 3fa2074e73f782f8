"""Signature -> the one step that is sent now, and what follows it with ids that stay.

Celery's canvas publishes as it goes; a message at rest needs everything fixed at the enqueue.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from celery import chunks, group
from celery.canvas import Signature, _chain, maybe_signature
from celery.utils.functional import maybe_list
from celery.utils.time import maybe_iso8601, maybe_make_aware

from outbox.exceptions import UnsupportedSignature
from outbox.ids import message_id

MAX_COUNTDOWN = 100 * 365 * 86_400

# With these a call publishes at once, whatever its producer.
PUBLISHING_OPTIONS = ("connection", "producer", "publisher")


def members(signatures: Any) -> list[Any]:
    """Return the signatures of a group, as the group would call them, or of any iterable."""
    if isinstance(signatures, chunks):
        signatures = signatures.group()
    if isinstance(signatures, group):
        return list(_group_members(signatures))
    if isinstance(signatures, Signature):
        _refuse_chords(signatures)
        raise TypeError(f"{signatures!r} is one signature: give a list of them, or a group.")
    return list(signatures)


def task_of(signature: Any) -> Any:
    """Return the task that runs first, or None for one that this process does not know."""
    first = _first_step(signature)
    return first.app.tasks.get(first.task)


def head_of(signature: Any) -> Any:
    """Return a copy of the one step that is sent now, with the ids of all that follows frozen."""
    _refuse_chords(signature)
    head = _chain_head(signature) if isinstance(signature, _chain) else signature.clone()
    if isinstance(head, group) or isinstance(signature, chunks):
        raise UnsupportedSignature(
            f"{head!r} is a group: several messages, not one. "
            "Use OutboxMessage.objects.enqueue_many(group)."
        )
    for option in PUBLISHING_OPTIONS:
        head.options.pop(option, None)
    for step in (head, *(head.options.get("chain") or ())):
        _freeze_links(step)
    return head


def _chain_head(signature: Any) -> Any:
    # What chain.run() does; it offers no way to do it without publishing.
    own_id = _first_step(signature).options.get("task_id")
    signature = signature.clone()  # preparing a chain writes its last id into it
    options = dict(signature.options)
    links = options.pop("link", None)
    link_error = options.pop("link_error", None)
    root_id, parent_id = options.pop("root_id", None), options.pop("parent_id", None)
    last_id, group_id = options.pop("task_id", None), options.pop("group_id", None)
    chord, group_index = options.pop("chord", None), options.pop("group_index", None)
    ending = _pop_group(signature) if signature.app.conf.task_protocol > 1 else None
    if ending is None:
        last = {"last_task_id": last_id, "group_id": group_id, "chord_body": chord}
        last["group_index"] = group_index
    else:
        last = {}
        ending._freeze_group_tasks(  # noqa: SLF001 (freeze() makes a result of it too)
            last_id, group_id, chord, root_id, None, group_index
        )
        for errback in maybe_list(link_error) or ():
            ending.link_error(errback)
    steps, results = signature.prepare_steps(
        signature.args, {}, signature.tasks, root_id, parent_id, link_error, signature.app, **last
    )
    if not results:
        raise UnsupportedSignature("The chain has no task in it: there is nothing to enqueue.")
    if ending is not None:
        steps.insert(0, ending)
    for step in steps:
        _refuse_chords(step)
    if links:
        steps[0].extend_list_option("link", links)
    head: Any = steps.pop()
    options["chain"] = list(options.get("chain") or ()) + steps
    head.options = head.clone(**options).options | {"chain": options["chain"], "task_id": own_id}
    return head


def _pop_group(chain: Any) -> Any:
    """Take the group off with which the chain ends, if it does and something comes before it.

    Celery would make it a result when it gives out ids, and that subscribes in the result backend.
    """
    while chain.tasks and isinstance(chain.tasks[-1], _chain):
        chain.tasks = [*chain.tasks[:-1], *chain.tasks[-1].tasks]
    ending = chain.tasks[-1] if len(chain.tasks) > 1 else None
    if not isinstance(ending, group) or len(list(ending.tasks)) == 1:
        return None
    chain.tasks = chain.tasks[:-1]
    return ending


def _first_step(signature: Any) -> Any:
    while isinstance(signature, _chain) and signature.tasks:
        signature = signature.tasks[0]
    return signature


def _freeze_links(signature: Any) -> None:
    """Give every callback its id now: a redelivery must not run it under a new one."""
    for option in ("link", "link_error"):
        links = signature["options"].get(option)
        if isinstance(links, (list, tuple)):
            signature["options"][option] = [_frozen(link) for link in links]
        elif links:
            signature["options"][option] = _frozen(links)
    for nested in _nested(signature):
        _freeze_links(nested)


def _frozen(signature: Any) -> Any:
    """Return a copy of the signature and what is nested in it; the caller's gets no id."""
    options = dict(signature["options"])
    if signature.get("subtask_type") != "chain":
        options.setdefault("task_id", str(uuid4()))
    frozen = {**signature, "options": options}
    if nested := _nested(signature):
        tasks = [_frozen(task) for task in nested]
        frozen["kwargs"] = {**signature["kwargs"], "tasks": tasks}
    _freeze_links(frozen)
    return Signature.from_dict(frozen)


def _nested(signature: Any) -> list[Any]:
    """Return the tasks of a chain or group, which may be a signature or a plain dict."""
    nested = signature.get("subtask_type") in ("chain", "group")
    return list(signature["kwargs"]["tasks"]) if nested else []


def _refuse_chords(signature: Any) -> None:
    for call in calls(signature):
        if call.get("subtask_type") == "chord":
            raise UnsupportedSignature(
                f"{call!r} is a chord: it counts its header's results in the result backend and "
                "can't be held as one message. Enqueue a task that starts the chord when it runs."
            )


def _group_members(signature: Any) -> Iterator[Any]:
    options = {k: v for k, v in signature.options.items() if k != "task_id" and v is not None}
    if "link" in options or "link_error" in options:
        raise UnsupportedSignature(
            f"{signature!r}: Celery takes no callbacks of a group. Put them on its tasks."
        )
    options.setdefault("group_id", str(signature.options.get("task_id") or message_id()))
    yield from _flat_members(signature, options)


def _flat_members(signature: Any, options: dict[str, Any]) -> Iterator[Any]:
    for index, task in enumerate(signature.tasks):
        member: Any = maybe_signature(task, signature.app)
        if isinstance(member, group):
            yield from _flat_members(member, options)
        elif not isinstance(member, _chain) or member.tasks:
            yield member.clone(**options, group_index=index)


def pop_schedule(head: Any) -> tuple[datetime | None, timedelta | None]:
    """Take eta and countdown off the signature: the table holds them, not the wire."""
    eta = head.options.pop("eta", None)
    countdown = head.options.pop("countdown", None)
    if countdown:
        return None, _delay(head.task, countdown)
    if eta is None:
        return None, None
    try:
        return _moment(eta, head), None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{head.task}: eta must be a datetime, in UTC of the years 1 to 9999, not {eta!r}."
        ) from error


def require_expiry(head: Any) -> None:
    """Refuse an ``expires`` of which Celery makes no moment, with an error that names it."""
    expires = head.options.get("expires")
    if expires is None:
        return
    if isinstance(expires, (int, float)) and abs(expires) <= MAX_COUNTDOWN:
        return
    try:
        if isinstance(expires, (str, datetime)):
            _moment(expires, head)
            return
    except (ValueError, OverflowError):
        pass
    raise ValueError(
        f"{head.task}: expires must be a number of seconds, at most a hundred years, or a "
        f"datetime, in UTC of the years 1 to 9999, not {expires!r}."
    )


def _moment(value: Any, head: Any) -> datetime:
    """Return the moment in UTC, as the database has it. A naive one is in Celery's time zone."""
    moment: Any = maybe_iso8601(value)
    return maybe_make_aware(moment, head.app.timezone).astimezone(UTC)


def _delay(task: str, countdown: Any) -> timedelta:
    seconds = float(countdown) if isinstance(countdown, (int, float, Decimal)) else math.nan
    if not abs(seconds) <= MAX_COUNTDOWN:
        raise ValueError(
            f"{task}: countdown must be a number of seconds, at most a hundred years, "
            f"not {countdown!r}."
        )
    return timedelta(seconds=seconds)


def calls(signature: Any) -> Iterator[Any]:
    """Yield the signature, or what is nested in it, and what follows."""
    nested = _nested(signature)
    if not nested:
        yield signature
    for option in ("link", "link_error", "chain"):
        nested += maybe_list(signature["options"].get(option)) or ()
    for follower in nested:
        yield from calls(follower)

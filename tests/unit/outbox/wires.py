"""Signatures and their wire messages, for the tests of what makes the one from the other."""

from __future__ import annotations

from typing import Any

from celery import current_app

from outbox import wire
from outbox.ids import id_for
from tests.project import tasks

# Their type knows fewer options than Celery does.
record: Any = tasks.record
fail: Any = tasks.fail
NAME = "tests.project.tasks.record"


def build(target: Any) -> wire.WireMessage:
    return wire.build(target, id_for(target))


def embedded(message: wire.WireMessage) -> Any:
    """What the body says beside the arguments."""
    return _decoded(message)[2]


def wire_args(message: wire.WireMessage) -> Any:
    return _decoded(message)[0]


def _decoded(message: wire.WireMessage) -> Any:
    accept = [message.properties["content_type"]]
    return wire.decode(message.body, message.headers, message.properties, accept)


def forget_settings() -> None:
    """Have Celery read again what it has made of its settings."""
    for name in ("send_task_message", "create_task_message"):
        vars(current_app.amqp).pop(name, None)
    app: Any = current_app
    app._local.__dict__.pop("backend", None)
    app._backend_cache = None

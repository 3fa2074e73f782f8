"""What a stored message says, for people. Reading a body must never run code that it names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pprint import pformat
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext as _

from outbox import wire

if TYPE_CHECKING:
    from outbox.models import OutboxMessage

SAFE_CONTENT_TYPES = [
    "application/json",
    "application/x-msgpack",
    "application/x-yaml",
    "text/plain",
]
"""Content types whose reading makes plain values only. Pickle makes whatever the body says."""

LARGEST_BODY = 256 * 1024
LONGEST_VALUE = 5_000


@dataclass(frozen=True, slots=True)
class Payload:
    """The call that a message carries: its arguments by name or position, and what follows it."""

    arguments: list[tuple[str, str]] = field(default_factory=list)
    followed_by: list[str] = field(default_factory=list)
    unread: str = ""
    """Why the body was not read: the arguments are then what Celery noted about them."""


def read(message: OutboxMessage) -> Payload:
    """Return what the message's task is called with. Does not raise, whatever the row holds."""
    content_type = str(message.properties.get("content_type"))
    size = len(message.body)
    if content_type not in SAFE_CONTENT_TYPES:
        reason = _("The body is %(type)s, which could run code when it is read.")
        return _noted(message, reason % {"type": content_type})
    if size > LARGEST_BODY:
        return _noted(message, _("The body is large: %(size)s bytes.") % {"size": f"{size:,}"})
    try:
        args, kwargs, embedded = wire.decode(
            bytes(message.body), message.headers, message.properties, SAFE_CONTENT_TYPES
        )
        return Payload(
            arguments=[
                *((str(position), _value(value)) for position, value in enumerate(args, start=1)),
                *((_short(str(name)), _value(value)) for name, value in kwargs.items()),
            ],
            followed_by=list(_followers(embedded)),
        )
    except Exception as error:  # the body may hold anything
        reason = _("The body cannot be read: %(error)s")
        return _noted(message, reason % {"error": f"{type(error).__name__}: {error}"})


def pretty(value: Mapping[str, Any]) -> str:
    """Return headers or properties as indented JSON; what JSON has no word for, as Python's."""
    return _encodable(json.dumps(value, indent=2, ensure_ascii=False, default=repr))


def _noted(message: OutboxMessage, reason: str) -> Payload:
    noted = (("args", "argsrepr"), ("kwargs", "kwargsrepr"))
    return Payload(
        arguments=[
            (name, _short(str(message.headers[header])))
            for name, header in noted
            if message.headers.get(header)
        ],
        unread=reason,
    )


def _followers(embedded: Mapping[str, Any]) -> Iterator[str]:
    # Celery keeps the rest of a chain with the next step last.
    for step in reversed(embedded.get("chain") or ()):
        yield step["task"]
    for callback in embedded.get("callbacks") or ():
        yield _("%(task)s, when it succeeds") % {"task": callback["task"]}
    for errback in embedded.get("errbacks") or ():
        yield _("%(task)s, when it fails") % {"task": errback["task"]}


def _value(value: Any) -> str:
    return _short(pformat(value, width=88, sort_dicts=False))


def _encodable(text: str) -> str:
    # A lone surrogate (os.fsdecode() makes them of file names) has no place in a page.
    return text.encode("utf-8", "backslashreplace").decode()


def _short(text: str) -> str:
    text = _encodable(text)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} …"

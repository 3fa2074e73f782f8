"""Signature -> wire message: exactly what Celery would have put on the wire, kept as bytes.

Celery itself builds the message: its public ``producer=`` argument accepts a producer, and ours
keeps what it is given instead of sending it. So routing, defaults, stamps, lineage, serializer,
compression and whatever instruments Celery are Celery's own. Nothing here touches Django, a
database or a broker.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from json import JSONDecoder
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from celery import Celery
from celery.exceptions import AlwaysEagerIgnored
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import Exchange, Producer, Queue, serialization
from kombu.compression import decompress
from kombu.exceptions import SerializationError
from kombu.utils.json import JSONEncoder, object_hook

from outbox import canvas, limits
from outbox.exceptions import UnserializableArgument, UnsupportedSignature

__all__ = [
    "WireMessage",
    "build",
    "decode",
    "is_capturing",
    "json_dumps",
    "json_loads",
]

# A result backend may connect when a task is called (Redis subscribes, RPC declares a queue). It
# must not, inside somebody's transaction, and it does not for a result that is ignored. The header
# gets its own value back. (denied_join_result() would do, but it holds for all threads at once.)
NO_RESULT: Any = type("NoResult", (int,), {})(1)

# A producer makes one and binds it, each time, if it is given none; Celery names the message's own.
NO_EXCHANGE = Exchange("")

# kombu.utils.json.loads() makes a decoder each time, which costs more than the decoding; dumps()
# makes an encoder.
json_dumps: Callable[[Any], str] = JSONEncoder().encode
json_loads: Callable[[str], Any] = JSONDecoder(object_hook=object_hook).decode


@dataclass(frozen=True, slots=True)
class WireMessage:
    """One message as the broker gets it, and when. ``delay`` counts from the enqueue."""

    task: str
    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    exchange: str
    routing_key: str
    queue: str
    expires_at: datetime | None = None
    eta: datetime | None = None
    delay: timedelta | None = None


def is_capturing(producer: object) -> bool:
    """Tell whether the producer is the one with which ``build`` has Celery build a message."""
    return isinstance(producer, _CapturingProducer)


def build(signature: Any, id: UUID) -> WireMessage:
    """Return the message that ``signature.apply_async(task_id=id)`` would have sent.

    Raises ``UnsupportedSignature`` for what is not one message (a group, a chord anywhere, a queue
    that the settings do not know), ``ValueError`` for a signature with an id of its own or with a
    header ``id`` or ``task``, and ``UnserializableArgument`` for an argument, header or option that
    the wire does not take.
    """
    app = signature.app
    head = canvas.head_of(signature)
    own_id = head.options.pop("task_id", None)
    if own_id not in (None, str(id)):
        raise ValueError(
            f"{head.task}: the signature has its own task_id {own_id!r}, but the id of the "
            "outbox message is the id of the task. Leave task_id out, and use key= to recognise "
            "the intent."
        )
    eta, delay = canvas.pop_schedule(head)
    canvas.require_expiry(head)
    channel: Any = _CapturingChannel(app)
    producer = _CapturingProducer(channel, NO_EXCHANGE, auto_declare=False)
    ignore_result = head.options.pop(
        "ignore_result", getattr(canvas.task_of(head), "ignore_result", None)
    )
    try:
        _apply(head, app, producer, str(id))
    except SerializationError as error:
        raise _unserializable(head, error) from error
    message: WireMessage = channel.wire_message(head.task, eta, delay)
    for name, own in (("id", str(id)), ("task", head.task)):
        if message.headers.get(name, own) != own:
            raise ValueError(
                f"{head.task}: the signature has a header {name!r} of its own, which Celery takes "
                f"for the {name} of the task. Use another name."
            )
    if message.headers.get("ignore_result") is NO_RESULT:
        message.headers["ignore_result"] = ignore_result
    return message


def decode(
    body: bytes, headers: Mapping[str, Any], properties: Mapping[str, Any], accept: list[str]
) -> tuple[Any, Any, Mapping[str, Any]]:
    """Return (args, kwargs, what follows the task) of a stored body.

    Raises ``kombu.exceptions.ContentDisallowed`` for a content type outside ``accept``, and what
    the serializer raises for a body that it cannot read.
    """
    compression = headers.get("compression")
    content = decompress(body, compression) if compression else body
    payload: Any = serialization.loads(
        content, properties["content_type"], properties["content_encoding"], accept=accept
    )
    if isinstance(payload, Mapping):  # task protocol 1
        return payload["args"], payload["kwargs"], payload
    args, kwargs, embedded = payload
    return args, kwargs, embedded


def _apply(head: Any, app: Celery, producer: Producer, id: str) -> None:
    options: dict[str, Any] = {
        "task_id": id,
        "producer": producer,
        "retry": False,
        "ignore_result": NO_RESULT,
    }
    if app.conf.task_always_eager:
        # apply_async() would run the task here and now; a message is wanted.
        merged = {**head.options, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AlwaysEagerIgnored)
            app.send_task(head.task, head.args, head.kwargs, **merged)
    else:
        head.apply_async(**options)


def _unserializable(head: Any, error: Exception) -> UnserializableArgument:
    serializer = head.options.get("serializer") or getattr(
        head.app.tasks.get(head.task), "serializer", None
    )
    for call in canvas.calls(head):
        named = [(f"argument {i}", value) for i, value in enumerate(call["args"], start=1)]
        named += [(f"argument {name!r}", value) for name, value in call["kwargs"].items()]
        for name, value in named:
            try:
                serialization.dumps(value, serializer)
            except SerializationError as cause:
                return UnserializableArgument(
                    f"{call['task']}: {name} cannot be serialized ({cause}). Pass a value that "
                    "the serializer takes, an object's primary key for instance. Nothing was "
                    "enqueued."
                )
    return UnserializableArgument(
        f"{head.task}: the message cannot be serialized ({error}). Nothing was enqueued."
    )


class _CapturingProducer(Producer):
    """A producer that sends nothing: the channel keeps the message, this keeps its queue."""

    def revive(self, channel: Any) -> None:
        """Without a copy of the exchange for the channel: it declares nothing."""
        self._channel = channel

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> bool:
        channel: Any = self.channel
        channel.declare(entity)
        return False


class _CapturingChannel:
    """Stands where a broker's channel would, and keeps the first message that is published.

    (Celery publishes a second one, a ``task-sent`` event, where that is switched on.)
    """

    is_open = True

    def __init__(self, app: Celery) -> None:
        self.app = app
        pool: Any = app.pool
        client = pool.connection  # the pool's pattern, which is never connected itself
        self.connection = SimpleNamespace(client=client)
        self.amqp = client.transport_cls in ("amqp", "amqps", "pyamqp")
        self.queue = ""
        self.message: tuple[bytes, dict[str, Any], dict[str, Any]] | None = None
        self.target = ("", "")

    def declare(self, entity: Any) -> None:
        if not isinstance(entity, Queue):
            return  # the exchange of a task-sent event
        known = self.app.amqp.queues.get(entity.name)
        if known is None:
            raise UnsupportedSignature(
                f"The queue {entity.name!r} of the signature is not in task_queues. The relay "
                "declares what the settings say: put the queue there, and name it in the signature."
            )
        if known is not entity and known.as_dict(recurse=True) != entity.as_dict(recurse=True):
            raise UnsupportedSignature(
                f"The queue {entity.name!r} of the signature differs from the one in task_queues. "
                "The relay declares what the settings say: put the queue there."
            )
        self.queue = self.queue or entity.name

    def prepare_message(  # noqa: PLR0917 (kombu's signature)
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: dict[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
    ) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
        own = {
            "priority": priority,
            "content_type": content_type,
            "content_encoding": content_encoding,
        }
        content = body.encode() if isinstance(body, str) else bytes(body)
        return content, headers or {}, own | (properties or {})

    def basic_publish(
        self, message: Any, exchange: str = "", routing_key: str = "", **_: Any
    ) -> None:
        if self.message is None:
            self.message, self.target = message, (exchange, routing_key)
        elif exchange != self.app.conf.event_exchange:
            raise UnsupportedSignature("Calling the task publishes several messages, not one.")

    def wire_message(self, task: str, eta: datetime | None, delay: timedelta | None) -> WireMessage:
        if self.message is None:
            raise UnsupportedSignature(f"{task}: calling the task published no message.")
        body, headers, properties = self.message
        # Counts from the publish, which is the relay's moment; the header is absolute.
        expiration = properties.pop("expiration", None)
        expires_at = maybe_iso8601(headers.get("expires"))
        if expires_at is None and expiration is not None:
            expires_at = self.app.now() + timedelta(milliseconds=int(expiration))
        if expires_at is not None:
            expires_at = maybe_make_aware(expires_at, self.app.timezone)
        exchange, routing_key = self.target
        target = {
            "exchange": exchange,
            "routing key": routing_key,
            "queue": self.queue,
            "name": task,
        }
        limits.require_sendable(task, headers, properties, target, amqp=self.amqp)
        return WireMessage(
            task,
            body,
            headers,
            properties,
            exchange,
            routing_key,
            self.queue,
            expires_at,
            eta,
            delay,
        )

"""Signature -> wire message: exactly what Celery would have put on the wire, kept as bytes.

Celery itself builds the message: its public ``producer=`` argument accepts a producer, and ours
keeps what it is given instead of sending it. So routing, defaults, stamps, lineage, serializer,
compression and whatever instruments Celery are Celery's own. Nothing here touches Django, a
database or a broker.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from json import JSONDecoder
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from celery import Celery, chunks, group
from celery.canvas import Signature, _chain, maybe_signature
from celery.exceptions import AlwaysEagerIgnored
from celery.utils.functional import maybe_list
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import Producer, Queue, serialization
from kombu.compression import decompress
from kombu.exceptions import SerializationError
from kombu.utils.json import dumps as json_dumps
from kombu.utils.json import object_hook

from outbox.exceptions import UnserializableArgument, UnsupportedSignature

__all__ = [
    "WireMessage",
    "build",
    "decode",
    "id_for",
    "is_capturing",
    "json_dumps",
    "json_loads",
    "members",
    "message_id",
    "task_of",
]

# AMQP sends all headers and properties of a message in one frame, and a broker closes the
# connection on a larger one: RabbitMQ's frame_max is 128 KiB unless it is configured smaller.
MAX_HEADERS_BYTES = 120 * 1024
MAX_SHORT_STRING_BYTES = 255
AMQP_INTEGERS = (-(2**63), 2**63 - 1)
MAX_OCTET = 255
KOMBU_TYPED = {"__type__", "__value__"}
MAX_COUNTDOWN = 100 * 365 * 86_400

# A result backend may connect when a task is called (Redis subscribes, RPC declares a queue). It
# must not, inside somebody's transaction, and it does not for a result that is ignored. The header
# gets its own value back. (denied_join_result() would do, but it holds for all threads at once.)
NO_RESULT: Any = type("NoResult", (int,), {})(1)

# With these a call publishes at once, whatever its producer.
PUBLISHING_OPTIONS = ("connection", "producer", "publisher")

# kombu.utils.json.loads() makes a decoder each time, which costs more than the decoding.
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


def id_for(signature: Any) -> UUID:
    """Return the id of the message to be: a new one, or that of a chain Celery has prepared."""
    if not isinstance(signature, Signature):
        raise TypeError(f"Enqueue a signature, task.s(...) for instance, not {signature!r}.")
    prepared = "chain" in signature.options and signature.options.get("task_id")
    return UUID(prepared) if prepared else message_id()


def message_id() -> UUID:
    """Return a UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then 74 random bits.

    It keeps no state, so it is safe in threads and across forks. It is an identity, not an order.
    """
    value = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)


def build(signature: Any, id: UUID) -> WireMessage:
    """Return the message that ``signature.apply_async(task_id=id)`` would have sent.

    Raises ``UnsupportedSignature`` for what is not one message (a group, a chord anywhere, a queue
    that the settings do not know), ``ValueError`` for a signature with an id of its own, and
    ``UnserializableArgument`` for an argument, header or option that the wire does not take.
    """
    app = signature.app
    head = _head(signature, app)
    own_id = head.options.pop("task_id", None)
    if own_id not in (None, str(id)):
        raise ValueError(
            f"{head.task}: the signature has its own task_id {own_id!r}, but the id of the "
            "outbox message is the id of the task. Leave task_id out, and use key= to recognise "
            "the intent."
        )
    eta, delay = _schedule(head, app)
    channel: Any = _CapturingChannel(app)
    producer = _CapturingProducer(channel, auto_declare=False)
    ignore_result = head.options.pop("ignore_result", getattr(task_of(head), "ignore_result", None))
    try:
        _apply(head, app, producer, str(id))
    except SerializationError as error:
        raise _unserializable(head, error) from error
    message: WireMessage = channel.wire_message(head.task, eta, delay)
    if message.headers.get("ignore_result") is NO_RESULT:
        message.headers["ignore_result"] = ignore_result
    return message


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


def _head(signature: Any, app: Celery) -> Any:
    """Return a copy of the one step that is sent now, with the ids of all that follows frozen."""
    _refuse_chords(signature)
    head = _chain_head(signature, app) if isinstance(signature, _chain) else signature.clone()
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


def _chain_head(signature: Any, app: Celery) -> Any:
    # What chain.run() does; it offers no way to do it without publishing.
    own_id = _first_step(signature).options.get("task_id")
    signature = signature.clone()  # preparing a chain writes its last id into it
    options = dict(signature.options)
    links = options.pop("link", None)
    link_error = options.pop("link_error", None)
    root_id, parent_id = options.pop("root_id", None), options.pop("parent_id", None)
    last_id, group_id = options.pop("task_id", None), options.pop("group_id", None)
    chord, group_index = options.pop("chord", None), options.pop("group_index", None)
    ending = _pop_group(signature) if app.conf.task_protocol > 1 else None
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
        signature.args, {}, signature.tasks, root_id, parent_id, link_error, app, **last
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
    for call in _calls(signature):
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


def _schedule(head: Any, app: Celery) -> tuple[datetime | None, timedelta | None]:
    """Take eta and countdown off the signature: the table holds them, not the wire."""
    eta = head.options.pop("eta", None)
    countdown = head.options.pop("countdown", None)
    if countdown:
        return None, _delay(head.task, countdown)
    if eta is None:
        return None, None
    try:
        moment: Any = maybe_iso8601(eta)
        return maybe_make_aware(moment, app.timezone), None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{head.task}: eta must be a datetime, not {eta!r}.") from error


def _delay(task: str, countdown: Any) -> timedelta:
    seconds = float(countdown) if isinstance(countdown, (int, float, Decimal)) else math.nan
    if not abs(seconds) <= MAX_COUNTDOWN:
        raise ValueError(
            f"{task}: countdown must be a number of seconds, at most a hundred years, "
            f"not {countdown!r}."
        )
    return timedelta(seconds=seconds)


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
    for call in _calls(head):
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


def _calls(signature: Any) -> Iterator[Any]:
    """Yield the signature, or what is nested in it, and what follows."""
    nested = _nested(signature)
    if not nested:
        yield signature
    for option in ("link", "link_error", "chain"):
        nested += maybe_list(signature["options"].get(option)) or ()
    for follower in nested:
        yield from _calls(follower)


class _CapturingProducer(Producer):
    """A producer that sends nothing: the channel keeps the message, this keeps its queue."""

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
        if known.as_dict(recurse=True) != entity.as_dict(recurse=True):
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
        size = _size_of(headers, f"{task}: header", amqp=self.amqp)
        size += _size_of(properties, f"{task}: property", amqp=self.amqp, short=True)
        if size > MAX_HEADERS_BYTES:
            raise UnserializableArgument(
                f"{task}: headers and properties are {size:,} bytes on the wire; a broker closes "
                f"the connection above {MAX_HEADERS_BYTES:,}. Put large values into arguments."
            )
        exchange, routing_key = self.target
        target = {"exchange": exchange, "routing key": routing_key, "name": task}
        _size_of(target, f"{task}: the task's", amqp=self.amqp, short=True)
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


class _Refused(ValueError):
    """Why a value cannot be sent, to be completed with where it is."""


def _size_of(values: Mapping[str, Any], where: str, *, amqp: bool, short: bool = False) -> int:
    """Return the AMQP size of headers in bytes, refusing what a broker does not survive."""
    size = 0
    for name, value in values.items():
        try:
            size += _short_size(name) + (_property_size(value) if short else _size(value, amqp))
        except _Refused as error:
            raise UnserializableArgument(f"{where} {str(name)[:64]!r} {error}") from None
    return size


def _size(value: Any, amqp: bool) -> int:
    if isinstance(value, str):
        return len(_utf8(value)) + 5
    if value is None or value is True or value is False:
        return 2
    if isinstance(value, (list, tuple)):
        return 5 + sum(_size(item, amqp) for item in value)
    if isinstance(value, Mapping):
        if value.keys() == KOMBU_TYPED:
            raise _Refused("is or holds a mapping that kombu takes for a typed value.")
        return 5 + sum(_short_size(name) + _size(item, amqp) for name, item in value.items())
    if isinstance(value, bytes):
        return len(value) + 5
    _check_scalar(value, amqp)
    return 9


def _short_size(text: object) -> int:
    size = len(_utf8(str(text)))
    if size > MAX_SHORT_STRING_BYTES:
        raise _Refused(f"is or holds a name of {size} bytes; at most {MAX_SHORT_STRING_BYTES} fit.")
    return size + 1


def _property_size(value: object) -> int:
    if isinstance(value, str):
        return _short_size(value)
    if value is None or isinstance(value, datetime):
        return 9
    if isinstance(value, int):
        if not 0 <= value <= MAX_OCTET:
            raise _Refused(f"is {value}; a property is a number from 0 to 255.")
        return 1
    raise _Refused(f"is of type {type(value).__name__}, which no broker's protocol carries.")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # as py-amqp does


def _check_scalar(value: Any, amqp: bool) -> None:
    if isinstance(value, int):
        if not AMQP_INTEGERS[0] <= value <= AMQP_INTEGERS[1]:
            raise _Refused(f"does not fit into 64 bits: {value}.")
    elif isinstance(value, (float, Decimal)):
        if not math.isfinite(value):
            raise _Refused(f"is {value}; only finite numbers are sent.")
        if amqp and isinstance(value, Decimal) and not _fits_amqp(value):
            raise _Refused(f"is {value}; AMQP has decimals of 31 bits. Send it as text.")
    elif not isinstance(value, datetime) and (amqp or not isinstance(value, (date, UUID))):
        raise _Refused(
            f"is of type {type(value).__name__}, which this broker's protocol cannot carry."
        )


def _fits_amqp(value: Decimal) -> bool:
    exponent = int(value.as_tuple().exponent)
    return 0 <= -exponent <= MAX_OCTET and abs(value.scaleb(-exponent)) < 2**31

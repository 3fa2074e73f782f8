"""What the wire takes: refused at the enqueue, where it would close the relay's connection."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from outbox.exceptions import UnserializableArgument

# AMQP sends all headers and properties of a message in one frame, and a broker closes the
# connection on a larger one: RabbitMQ's frame_max is 128 KiB unless it is configured smaller.
MAX_HEADERS_BYTES = 120 * 1024
MAX_SHORT_STRING_BYTES = 255
AMQP_INTEGERS = (-(2**63), 2**63 - 1)
MAX_OCTET = 255
# The properties that AMQP sends as numbers, each with its largest, and those that it sends as text.
NUMBERS = {"priority": MAX_OCTET, "delivery_mode": MAX_OCTET, "timestamp": 2**64 - 1}
TEXTS = {"correlation_id", "reply_to", "message_id", "type", "user_id", "app_id", "cluster_id"}
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
KOMBU_TYPED = {"__type__", "__value__"}


def require_sendable(
    task: str,
    headers: Mapping[str, Any],
    properties: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    amqp: bool,
) -> None:
    """Raise ``UnserializableArgument`` for what a broker refuses, or does not survive.

    ``target``: the exchange, the routing key and whatever else goes as a short string and is text
    in the table.
    """
    size = _size_of(headers, f"{task}: header", amqp=amqp)
    size += _size_of(properties, f"{task}: property", amqp=amqp, short=True)
    if size > MAX_HEADERS_BYTES:
        raise UnserializableArgument(
            f"{task}: headers and properties are {size:,} bytes on the wire; a broker closes "
            f"the connection above {MAX_HEADERS_BYTES:,}. Put large values into arguments."
        )
    _size_of(target, f"{task}: the task's", amqp=amqp, short=True)
    for name, text in target.items():
        if UNSTORABLE.search(text):
            raise UnserializableArgument(
                f"{task!r}: the task's {name!r} is {text!r}; PostgreSQL takes no text with NUL or "
                "a lone surrogate."
            )


class _Refused(ValueError):
    """Why a value cannot be sent, to be completed with where it is."""


def _size_of(values: Mapping[str, Any], where: str, *, amqp: bool, short: bool = False) -> int:
    """Return the AMQP size of headers in bytes, refusing what a broker does not survive."""
    size = 0
    for name, value in values.items():
        try:
            size += _short_size(name)
            size += _property_size(name, value, amqp) if short else _size(value, amqp)
        except _Refused as error:
            raise UnserializableArgument(f"{where} {str(name)[:64]!r} {error}") from None
    return size


def _size(value: Any, amqp: bool) -> int:
    if isinstance(value, str):
        return _text_size(value) + 5
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
    size = _text_size(str(text))
    if size > MAX_SHORT_STRING_BYTES:
        raise _Refused(f"is or holds a name of {size} bytes; at most {MAX_SHORT_STRING_BYTES} fit.")
    return size + 1


def _property_size(name: str, value: object, amqp: bool) -> int:
    most = NUMBERS.get(name)
    if most is not None and isinstance(value, int) and not 0 <= value <= most:
        raise _Refused(f"is {value}; it is a number from 0 to {most}.")
    if amqp and value is not None:
        wanted = int if most is not None else str if name in TEXTS else object
        if not isinstance(value, wanted):
            raise _Refused(f"is of type {type(value).__name__}; AMQP has it of {wanted.__name__}.")
    if isinstance(value, str):
        return _short_size(value)
    if value is None or isinstance(value, (datetime, int)):
        return 9
    raise _Refused(f"is of type {type(value).__name__}, which no broker's protocol carries.")


def _text_size(text: str) -> int:
    if text.isascii():
        return len(text)
    return len(text.encode("utf-8", "surrogatepass"))  # as py-amqp does


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

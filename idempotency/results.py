"""How a result is stored: tagged JSON in bytes, so that it comes back equal in value and type.

Pure. Only types that are listed here are written or read, and instances whose parts are; no row can
name a class to import.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from idempotency import instances
from idempotency.exceptions import ImproperlyUsed, ResultUnavailable

CODEC = b"json1:"
TAG, VALUE = "=", "v"
INSTANCE = "instance"
DEEPEST = 64
ENCODE = json.JSONEncoder(separators=(",", ":")).encode
LARGEST_PLAIN = 13_000
"""Bits: a longer int is written in hex, because Python refuses more than 4,300 decimal digits."""


def dumps(value: Any) -> bytes:
    """Return the bytes of a result.

    Raises ``ImproperlyUsed`` for what would not come back equal in value and type; it names the
    path and the type.
    """
    return CODEC + ENCODE(_pack(value, "result", 0)).encode()


def loads(stored: bytes) -> Any:
    """Return the result. Raises ``ResultUnavailable`` where another codec has written it."""
    if not stored.startswith(CODEC):
        raise ResultUnavailable(
            f"The result was stored as {stored[:8]!r}…, which this version does not read."
        )
    return _unpack(json.loads(stored[len(CODEC) :]))


def _pack(value: Any, path: str, depth: int) -> Any:
    if depth > DEEPEST:
        raise ImproperlyUsed(f"{path}: nested more than {DEEPEST} levels deep, or in a cycle.")
    kind = type(value)
    if _is_plain(value, kind):
        return value
    if kind is list:
        return _pack_all(value, path, depth)
    if kind is dict:
        return _pack_dict(value, path, depth)
    if kind in (tuple, set, frozenset):
        return {TAG: kind.__name__, VALUE: _pack_all(value, path, depth)}
    if kind in PACK:
        return {TAG: kind.__name__, VALUE: PACK[kind](value)}
    if (parts := instances.take_apart(value)) is not None:
        packed = _pack_dict(parts, path, depth)
        return {TAG: INSTANCE, VALUE: [kind.__module__, kind.__qualname__, packed]}
    raise ImproperlyUsed(
        f"{path}: a {kind.__module__}.{kind.__qualname__} would not come back from the table as "
        "it was, so the operation is rolled back. Return plain values (text, numbers, Decimal, "
        "date and time, UUID, bytes, tuples, lists, sets, dictionaries), or an enum member, a "
        "dataclass or a pydantic model of a class at its module's top level; for example a "
        "primary key instead of a Django model."
    )


def _is_plain(value: Any, kind: type) -> bool:
    """Whether JSON alone gives it back."""
    if kind is int:
        return bool(value.bit_length() <= LARGEST_PLAIN)
    if kind is float:
        return math.isfinite(value)
    return kind in (str, bool, NoneType)


def _pack_all(values: Iterable[Any], path: str, depth: int) -> list[Any]:
    return [_pack(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(values)]


def _pack_dict(value: dict[Any, Any], path: str, depth: int) -> dict[str, Any]:
    if TAG not in value and all(type(name) is str for name in value):
        return {name: _pack(item, f"{path}[{name!r}]", depth + 1) for name, item in value.items()}
    pairs = [
        [_pack(name, f"{path}.keys()", depth + 1), _pack(item, f"{path}[{name!r}]", depth + 1)]
        for name, item in value.items()
    ]
    return {TAG: "dict", VALUE: pairs}


def _unpack(packed: Any) -> Any:
    if isinstance(packed, list):
        return [_unpack(item) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if TAG not in packed:
        return {name: _unpack(item) for name, item in packed.items()}
    return UNPACK[packed[TAG]](packed[VALUE])


def _pack_moment(value: datetime | time) -> list[Any]:
    """ISO 8601, and a named zone apart: an offset alone would lose its rules."""
    if isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key:
        return [value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo.key]
    return [value.isoformat(), value.fold, None]


def _unpack_moment(kind: type[datetime | time], packed: list[Any]) -> datetime | time:
    text, fold, zone = packed
    moment = kind.fromisoformat(text).replace(fold=fold)
    return moment if zone is None else moment.replace(tzinfo=ZoneInfo(zone))


PACK: dict[type, Callable[[Any], Any]] = {
    int: hex,
    float: repr,
    Decimal: str,
    bytes: lambda value: base64.b64encode(value).decode("ascii"),
    UUID: lambda value: value.hex,
    datetime: _pack_moment,
    time: _pack_moment,
    date: date.isoformat,
    timedelta: lambda value: [value.days, value.seconds, value.microseconds],
}

UNPACK: dict[str, Callable[[Any], Any]] = {
    "int": lambda packed: int(packed, 16),
    "float": float,
    "Decimal": Decimal,
    "bytes": base64.b64decode,
    "UUID": UUID,
    "datetime": lambda packed: _unpack_moment(datetime, packed),
    "time": lambda packed: _unpack_moment(time, packed),
    "date": date.fromisoformat,
    "timedelta": lambda packed: timedelta(*packed),
    "tuple": lambda packed: tuple(map(_unpack, packed)),
    "set": lambda packed: set(map(_unpack, packed)),
    "frozenset": lambda packed: frozenset(map(_unpack, packed)),
    "dict": lambda packed: {_unpack(name): _unpack(item) for name, item in packed},
    INSTANCE: lambda packed: instances.put_together(packed[0], packed[1], _unpack(packed[2])),
}

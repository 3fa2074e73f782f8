"""Canonical keys and fingerprints: equal values give equal bytes, in every process, for ever.

Pure: no database, and no Django but to recognise a model instance.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
import itertools
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from idempotency.exceptions import KeyMissing

ALGORITHM = "idk1"
DEEPEST = 64
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COMPOSITES = frozenset({list, tuple, dict})


def make_key(
    namespace: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    scope: str = "",
    secret: str = "",
) -> str:
    """Return the key of a call; see ``idempotency.make_key``, which knows the secret."""
    if not args and not kwargs:
        raise KeyMissing(f"make_key({namespace!r}) was given no value that tells the intent.")
    for text in (namespace, scope):
        if not isinstance(text, str):
            raise TypeError(f"make_key() takes namespace and scope that are text, not {text!r}.")
    values = _encode([args, kwargs], "", 0, exact=True)
    framed = _frame(ALGORITHM.encode(), _text(namespace), _text(scope), values)
    return f"{ALGORITHM}:{_digest(framed, secret)}"


def fingerprint(payload: Any, *, secret: str = "") -> str:
    """Return the fingerprint of a payload; see ``idempotency.digests.fingerprint``."""
    return _digest(_encode(payload, "", 0, exact=False), secret)


def lock_number(namespace: str, scope: str, key: str) -> int:
    """Return the signed 64-bit number of the key's advisory lock.

    A collision makes two keys wait for each other and does no harm: the row decides.
    """
    framed = _frame(b"idempotency", namespace.encode(), scope.encode(), key.encode())
    return int.from_bytes(hashlib.sha256(framed).digest()[:8], "big", signed=True)


def _digest(data: bytes, secret: str) -> str:
    if secret:
        return hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()
    return hashlib.sha256(data).hexdigest()


def _frame(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _encode(value: Any, path: str, depth: int, *, exact: bool) -> bytes:
    if depth > DEEPEST:
        raise ValueError(f"{path}: nested more than {DEEPEST} levels deep, or in a cycle.")
    if type(value) in COMPOSITES:
        return _encode_composite(value, path, depth, exact=exact)
    scalar = SCALAR_OF.get(type(value))
    if scalar is None:
        hook = getattr(type(value), "__idempotency_key__", None)
        if hook is not None:
            return _encode(hook(value), path, depth + 1, exact=exact)
        if isinstance(value, enum.Enum):
            return _encode(value.value, path, depth + 1, exact=exact)
        scalar = next((scalar for scalar in SCALARS if isinstance(value, scalar[0])), None)
    if scalar is None:
        return _encode_composite(value, path, depth, exact=exact)
    _, tag, encode = scalar
    try:
        return tag + _frame(encode(value, exact))
    except ValueError as error:
        raise ValueError(f"{path or 'value'}: {error}") from None


def _encode_composite(value: Any, path: str, depth: int, *, exact: bool) -> bytes:
    if isinstance(value, (list, tuple)):
        items = _encode_items(value, path, depth, exact=exact)
        return b"l" + _frame(b"".join(items))
    if isinstance(value, AbstractSet):
        items = sorted(_encode_items(value, path, depth, exact=exact))
        _refuse_twins(items, path, "members")
        return b"s" + _frame(b"".join(items))
    fields = _fields(value)
    if fields is not None:
        return _encode_mapping(fields, path, depth, exact=exact)
    if _is_model_instance(value):
        if value.pk is None or value._state.adding:
            raise ValueError(f"{path or 'value'}: {value._meta.label} is not saved.")
        label = value._meta.concrete_model._meta.label_lower.encode()
        return b"m" + _frame(label, _encode(value.pk, f"{path}.pk", depth + 1, exact=exact))
    raise TypeError(
        f"{path or 'value'}: {type(value).__module__}.{type(value).__qualname__} has no canonical "
        "form. Pass an identifier, or give the class an __idempotency_key__() method."
    )


def _encode_items(values: Iterable[Any], path: str, depth: int, *, exact: bool) -> list[bytes]:
    return [
        _encode(item, f"{path}[{index}]", depth + 1, exact=exact)
        for index, item in enumerate(values)
    ]


def _encode_mapping(mapping: Mapping[Any, Any], path: str, depth: int, *, exact: bool) -> bytes:
    pairs = []
    for name, item in mapping.items():
        inner = f"{path}.{name}" if path else f"{name}"
        if exact and not isinstance(name, str):
            raise TypeError(f"{inner}: the keys of a dictionary must be text, not {name!r}.")
        pairs.append(
            (
                _encode(name, inner, depth + 1, exact=exact),
                _encode(item, inner, depth + 1, exact=exact),
            )
        )
    pairs.sort()
    _refuse_twins([name for name, _ in pairs], path, "keys")
    return b"d" + _frame(b"".join(name + item for name, item in pairs))


def _refuse_twins(encoded: list[bytes], path: str, what: str) -> None:
    """``encoded`` is sorted. Text that differs only before normalization would become one."""
    if any(one == other for one, other in itertools.pairwise(encoded)):
        raise ValueError(f"{path or 'value'}: two {what} are the same text in NFC.")


def _fields(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    names = getattr(type(value), "model_fields", None)  # pydantic
    if isinstance(names, Mapping):
        return {name: getattr(value, name) for name in names}
    return None


def _is_model_instance(value: Any) -> bool:
    models = sys.modules.get("django.db.models")
    return models is not None and isinstance(value, models.Model)


def _text(value: str, exact: bool = True) -> bytes:
    if value.isascii():
        return value.encode()
    try:
        return unicodedata.normalize("NFC", value).encode(
            "utf-8", "strict" if exact else "surrogatepass"
        )
    except UnicodeEncodeError:
        raise ValueError("the text has a lone surrogate.") from None


def _boolean(value: bool, exact: bool) -> bytes:
    return b"1" if value else b"0"


def _number(value: float | Decimal, exact: bool) -> bytes:
    """Sign, digits without zeros at the end, exponent: exact at any size, whatever the context."""
    number = Decimal(float.__repr__(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        if exact:
            raise ValueError(f"{value!r} equals nothing for certain.")
        return str(number).encode()
    sign, digits, exponent = number.as_tuple()
    significant = "".join(map(str, digits)).lstrip("0")
    if not significant:
        return b"0"
    stripped = significant.rstrip("0")
    power = int(exponent) + len(significant) - len(stripped)
    return f"{'-' if sign else ''}{stripped}e{power}".encode()


def _datetime(value: datetime, exact: bool) -> bytes:
    if value.utcoffset() is None:
        if exact:
            raise ValueError(f"{value!r} is naive: it names no instant without a time zone.")
        return f"naive {value.isoformat()}".encode()
    return _timedelta(value - EPOCH, exact)


def _time(value: time, exact: bool) -> bytes:
    if value.tzinfo is not None and exact:
        raise ValueError(f"{value!r} has a time zone: it names no time of day without a date.")
    return value.isoformat().encode()


def _timedelta(value: timedelta, exact: bool) -> bytes:
    return b"%d" % (value // timedelta(microseconds=1))


SCALARS: tuple[tuple[Any, bytes, Callable[[Any, bool], bytes]], ...] = (
    # A subclass comes before its base.
    (str, b"t", _text),
    (bool, b"b", _boolean),
    ((int, float, Decimal), b"n", _number),
    (type(None), b"0", lambda value, exact: b""),
    (UUID, b"u", lambda value, exact: value.bytes),
    ((bytes, bytearray, memoryview), b"y", lambda value, exact: bytes(value)),
    (datetime, b"i", _datetime),
    (date, b"a", lambda value, exact: value.isoformat().encode()),
    (time, b"o", _time),
    (timedelta, b"r", _timedelta),
)
"""(types, tag, bytes of a value): what has no parts. Tags and forms never change under idk1."""

SCALAR_OF = {
    kind: next(scalar for scalar in SCALARS if issubclass(kind, scalar[0]))
    for kind in (str, bool, int, float, type(None), bytes)
}
"""For nearly every value, without a look at each."""

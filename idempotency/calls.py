"""The calls of a guarded function: bound arguments, and the key that they give.

Pure. Arguments are those of the signature with its defaults, so ``f(1)``, ``f(1, 5)`` and
``f(order_id=1)`` are the same call.
"""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from idempotency.exceptions import ImproperlyUsed, KeyMissing

RECEIVERS = ("self", "cls")
SPEAKING = (str, int, float, Decimal, UUID, date, time, timedelta, Enum)
"""Types whose text names the value; the text of others may be a memory address."""

KeySource = Callable[[Mapping[str, Any]], str]


class Parameters:
    """The parameters of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.signature = inspect.signature(function)
        parameters = list(self.signature.parameters.values())
        self.names = frozenset(self.signature.parameters)
        self.first = parameters[0].name if parameters else ""
        self.has_receiver = self.first in RECEIVERS
        self._extra = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        self._is_plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        self._defaults = {p.name: p.default for p in parameters}
        self._required = {p.name for p in parameters if p.default is p.empty}

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, with defaults, ``*args`` as a tuple, ``**kwargs`` merged.

        Raises ``TypeError`` where the call itself would.
        """
        given = dict(zip(self._defaults, args, strict=False), **kwargs)
        is_whole = len(given) == len(args) + len(kwargs)
        if self._is_plain and is_whole and self._required <= given.keys() <= self.names:
            # Nearly every call; inspect takes ten times as long.
            return {**self._defaults, **given}
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        if self._extra is not None:
            for name, value in arguments.pop(self._extra).items():
                # A positional-only parameter may have the same name.
                arguments[f"**{name}" if name in arguments else name] = value
        return arguments

    def knows(self, name: str) -> bool:
        """Whether a call can have an argument of that name."""
        return name in self.names or self._extra is not None


def key_source(given: str | Callable[..., Any], parameters: Parameters, option: str) -> KeySource:
    """Return what makes a key (or scope) from bound arguments.

    ``given`` is a format string over the arguments, or a callable that takes those arguments that
    it names. Raises ``TypeError`` if it asks for an argument that the function does not have.
    The source raises ``KeyMissing`` when nothing comes out, or a field of the format is empty.
    """
    if isinstance(given, str):
        return _format_source(given, parameters, option)
    if callable(given):
        return _callable_source(given, parameters, option)
    raise TypeError(f"{option}= takes a format string or a callable, not {given!r}.")


def _format_source(given: str, parameters: Parameters, option: str) -> KeySource:
    formatter = _KeyFormatter(option, given)
    for name in formatter.names():
        _require_parameter(name, parameters, f"{option}={given!r}")

    def source(arguments: Mapping[str, Any]) -> str:
        return key_text(formatter.vformat(given, (), arguments), f"{option}={given!r}")

    return source


def _callable_source(given: Callable[..., Any], parameters: Parameters, option: str) -> KeySource:
    wanted = inspect.signature(given).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted)
    names = [p.name for p in wanted if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    positional = [p.name for p in wanted if p.kind is p.POSITIONAL_ONLY]
    for name in names:
        _require_parameter(name, parameters, f"The callable of {option}=")

    def source(arguments: Mapping[str, Any]) -> str:
        named = {
            name: value
            for name, value in arguments.items()
            if name not in positional and (takes_all or name in names)
        }
        value = given(*[arguments[name] for name in positional if name in arguments], **named)
        return key_text(value, f"The callable of {option}=")

    return source


def key_text(value: Any, origin: str) -> str:
    """Return a key as text; ``origin`` names where it comes from.

    Raises ``KeyMissing`` for None and ``""``, ``ImproperlyUsed`` for other types than text, int
    and UUID.
    """
    if isinstance(value, Enum):
        value = value.value
    if value is None or value == "":
        raise KeyMissing(f"{origin} came out empty, and without a key nothing tells a duplicate.")
    if isinstance(value, (str, int, UUID)) and not isinstance(value, bool):
        return str(value)
    raise ImproperlyUsed(
        f"{origin} is a {type(value).__qualname__}: a key is text, an int or a UUID. "
        "make_key() turns other values into one."
    )


def _require_parameter(name: str, parameters: Parameters, origin: str) -> None:
    if not parameters.knows(name):
        known = ", ".join(sorted(parameters.names)) or "none"
        raise TypeError(
            f"{origin} asks for {name!r}, which is not an argument of the function "
            f"(its arguments: {known})."
        )


class _KeyFormatter(string.Formatter):
    """Formats a key, and refuses a field whose text would not identify its value."""

    def __init__(self, option: str, given: str) -> None:
        self._origin = f"{option}={given!r}"
        self._given = given

    def names(self) -> Iterator[str]:
        """Yield the arguments that the format asks for."""
        try:
            fields = list(self._fields(self._given))
        except ValueError as error:
            raise TypeError(f"{self._origin} is not a format string: {error}.") from None
        for field in fields:
            name = field.replace("[", ".").partition(".")[0]
            if not name.isidentifier():
                raise TypeError(
                    f"{self._origin} has the field {{{field}}}: fields name arguments, as in "
                    "{order_id}."
                )
            yield name

    def _fields(self, given: str) -> Iterator[str]:
        """Yield the fields, and those inside their format specifications."""
        for _, field, specification, conversion in self.parse(given):
            if field is not None:
                yield field
                self.convert_field("", conversion)
                yield from self._fields(specification or "")

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        try:
            value, name = super().get_field(field_name, args, kwargs)
        except KeyError:
            raise KeyMissing(f"{self._origin}: this call has no {field_name}.") from None
        if isinstance(value, Enum):
            value = value.value
        if value is None or value == "":
            raise KeyMissing(
                f"{self._origin}: {field_name} is {value!r}, and a key without it would be shared "
                "by all calls that lack it."
            )
        if not isinstance(value, SPEAKING):
            raise ImproperlyUsed(
                f"{self._origin}: {field_name} is a {type(value).__qualname__}, whose text does "
                "not identify it. Name one of its attributes, or use key=callable with make_key()."
            )
        return value, name

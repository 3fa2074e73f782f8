"""Results that are instances of your own classes: enum members, dataclasses, pydantic models.

Pure. A row names the class. It is looked for among the modules that are imported already, and
neither ``__init__`` nor a validator runs: so no row can have anything imported or executed.
"""

from __future__ import annotations

import dataclasses
import sys
from enum import Enum
from typing import Any, cast

from idempotency.exceptions import ResultUnavailable


def take_apart(value: Any) -> dict[str, Any] | None:
    """Return what the instance consists of; None: it could not be put together again."""
    kind = type(value)
    if _find(kind.__module__, kind.__qualname__) is not kind:
        return None
    try:
        parts = _parts(value)
        return parts if _assemble(kind, parts) == value else None
    except Exception:  # of a class of somebody else's, which may do anything
        return None


def put_together(module: str, name: str, parts: dict[str, Any]) -> Any:
    """Return the instance. Raises ``ResultUnavailable`` where its class is not as it was."""
    try:
        made = _assemble(_find(module, name), parts)
        if _parts(made) == parts:
            return made
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise ResultUnavailable(
        f"The result was stored as an instance of {module}.{name} with {', '.join(parts)}. This "
        "process has not imported such a class, or the class has changed since."
    )


def _find(module: str, name: str) -> Any:
    """Look it up without asking anybody: a module may import what it is asked for."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, Enum):
        return {"value": value.value}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    fields = {name: getattr(value, name) for name in type(value).model_fields}  # pydantic
    return {"fields": fields | (value.model_extra or {}), "set": value.model_fields_set}


def _assemble(kind: Any, parts: dict[str, Any]) -> Any:
    if issubclass(kind, Enum):
        return kind(parts["value"])
    if dataclasses.is_dataclass(kind):
        return _filled(object.__new__(cast(type, kind)), parts)
    return kind.model_construct(parts["set"], **parts["fields"])


def _filled(made: object, parts: dict[str, Any]) -> object:
    """A frozen dataclass refuses to be set."""
    for name, part in parts.items():
        object.__setattr__(made, name, part)
    return made

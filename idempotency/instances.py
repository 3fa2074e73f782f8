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
        made = _assemble(kind, parts)
        # By its parts, of which NaN is one and the same, though equal to nothing.
        equal = kind.__eq__ is not object.__eq__ and _parts(made) == parts
        return parts if made is value or (equal and not _lacks(made, value)) else None
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
    kind, private = type(value), value.__pydantic_private__
    return {
        "fields": {name: getattr(value, name) for name in kind.model_fields},
        "set": value.__pydantic_fields_set__,
        "extra": value.__pydantic_extra__,
        "private": private,
        "unset": set(kind.__private_attributes__) - set(private or ()),
    }


def _assemble(kind: Any, parts: dict[str, Any]) -> Any:
    if issubclass(kind, Enum):
        return kind(parts["value"])
    if dataclasses.is_dataclass(kind):
        return _filled(object.__new__(cast(type, kind)), parts)
    if kind.model_fields.keys() != parts["fields"].keys():
        raise TypeError
    # Like a copy of pydantic's; its model_construct() would run model_post_init().
    state = {
        "__dict__": dict(parts["fields"]),
        "__pydantic_fields_set__": parts["set"],
        "__pydantic_extra__": parts["extra"],
        "__pydantic_private__": parts["private"],
    }
    # Where the class says None itself, as RootModel does, its instances have no place for it.
    own = {name: part for name, part in state.items() if getattr(kind, name) is not part}
    return _filled(object.__new__(kind), own)


def _lacks(made: object, value: object) -> bool:
    """Whether it lacks what somebody has set besides the fields, which equality does not see.

    A cached property is computed again.
    """
    besides = getattr(value, "__dict__", {}).keys() - getattr(made, "__dict__", {}).keys()
    return any(
        not hasattr(getattr(type(value), name, None), "__get__")
        for name in besides - {"__orig_class__"}  # of typing
    )


def _filled(made: object, parts: dict[str, Any]) -> object:
    """A frozen dataclass refuses to be set."""
    for name, part in parts.items():
        object.__setattr__(made, name, part)
    return made

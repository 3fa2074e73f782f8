"""Operations that run once per key, for Django and Celery on PostgreSQL.

Nothing here imports a model or Django's registry, so a tasks module may import it at any time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idempotency.decorators import idempotent
    from idempotency.digests import make_key
    from idempotency.http import idempotent_view, mark_final
    from idempotency.leases import derived_key, fenced, step

__all__ = [
    "derived_key",
    "fenced",
    "idempotent",
    "idempotent_view",
    "make_key",
    "mark_final",
    "step",
]

_ROOMS = {
    "derived_key": "leases",
    "fenced": "leases",
    "idempotent": "decorators",
    "idempotent_view": "http",
    "make_key": "digests",
    "mark_final": "http",
    "step": "leases",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)

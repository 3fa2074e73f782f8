"""The id of a message, which is the id of its task and the default key of its execution."""

from __future__ import annotations

import os
import time
from typing import Any
from uuid import UUID

from celery.canvas import Signature


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

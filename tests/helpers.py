"""Waiting for a condition, never for an amount of time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T],
    *,
    timeout: float = 30,
    interval: float = 0.02,
    message: str | Callable[[], str] = "",
) -> T:
    """Call ``condition`` until it returns something true; return that.

    ``timeout`` and ``interval`` are seconds. Raises AssertionError with ``message`` (text, or a
    callable that tells how far things got), and the last value of ``condition``.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            told = message() if callable(message) else message
            raise AssertionError(f"{told or 'Condition not met'} after {timeout} s: {value!r}")
        time.sleep(interval)
    return value

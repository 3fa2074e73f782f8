"""Deliveries at the same time, on connections of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from typing import TYPE_CHECKING, Any

from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Callable

RACERS = 8


def race(operation: Callable[[], Any], racers: int = RACERS) -> list[Any]:
    """Call ``operation`` from as many threads at once; return what they returned or raised."""
    start = Barrier(racers)

    def run() -> Any:
        try:
            start.wait()
            return operation()
        except Exception as error:
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(racers) as threads:
        return [future.result() for future in [threads.submit(run) for _ in range(racers)]]


class Meeting:
    """An effect that takes until another one begins, or half a second. Counts the effects."""

    def __init__(self) -> None:
        self.effects = 0
        self._barrier = Barrier(2)

    def __call__(self) -> str:
        with suppress(BrokenBarrierError):
            self._barrier.wait(timeout=0.5)
        self.effects += 1
        return "done"

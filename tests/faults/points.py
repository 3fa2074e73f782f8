"""Named points at which a relay or worker stops itself: moments that a random kill seldom hits.

``FAULT_POINT=published FAULT_SIGNAL=SIGKILL`` in the environment of a process; once per process.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from celery.signals import task_success

from idempotency.signals import executed
from outbox.publisher import Publisher
from outbox.querysets import OutboxQuerySet

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

POINT = "FAULT_POINT"
SIGNAL = "FAULT_SIGNAL"

logger = logging.getLogger(__name__)


def stopping(point: str, number: signal.Signals) -> dict[str, str]:
    """The environment of a process that shall signal itself at a point."""
    return {POINT: point, SIGNAL: number.name}


def stop_at(point: str, number: signal.Signals) -> None:
    """Have this process, its pool included, signal itself when it first comes to the point."""

    @functools.cache
    def stop() -> None:
        if threading.current_thread() is threading.main_thread():
            os.killpg(os.getpgrp(), number)
        else:
            # A relay's thread would go on for a moment while another one takes the signal.
            signal.pthread_kill(threading.get_ident(), number)

    INSTALL[point](stop)


def tell_batches() -> None:
    """Log the size of each settled batch: who published what, where several relays do."""
    settle = OutboxQuerySet.settle

    def telling(self: OutboxQuerySet, confirmed: Collection[Any]) -> int:
        settled = settle(self, confirmed)
        logger.warning("settled %s", settled)
        return settled

    OutboxQuerySet.settle = telling  # type: ignore[method-assign, assignment]


def _before(owner: Any, name: str) -> Callable[[Callable[[], None]], None]:
    def install(stop: Callable[[], None]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def stopping(*args: Any, **kwargs: Any) -> Any:
            stop()
            return original(*args, **kwargs)

        setattr(owner, name, stopping)

    return install


def _after(owner: Any, name: str) -> Callable[[Callable[[], None]], None]:
    def install(stop: Callable[[], None]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def stopping(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            stop()
            return result

        setattr(owner, name, stopping)

    return install


def _on_return(stop: Callable[[], None]) -> None:
    task_success.connect(lambda **_: stop(), weak=False)


def _on_execution(stop: Callable[[], None]) -> None:
    executed.connect(lambda **_: stop(), weak=False)


INSTALL: dict[str, Callable[[Callable[[], None]], None]] = {
    # A relay, from its claim to its commit.
    "claimed": _before(Publisher, "publish"),
    "published": _after(Publisher, "await_confirms"),
    "settled": _after(OutboxQuerySet, "settle"),
    # A worker: effects, key and receipt are written and not committed.
    "executed": _on_execution,
    # They have committed, and the broker does not know.
    "returned": _on_return,
}

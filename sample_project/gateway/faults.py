"""The gateway's bad days, on demand."""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Fault(StrEnum):
    NONE = "none"
    # 503, and nothing was done.
    FAIL = "fail"
    # It is done, and the answer never comes.
    HANG = "hang"
    # 402: the customer's bank says no.
    DECLINE = "decline"


@dataclass
class Faults:
    """What goes wrong with the next requests: first ``script``, in order, then by chance.

    ``fail``, ``hang`` and ``decline`` are probabilities. ``hang_seconds`` is how long the gateway
    says nothing before it closes the connection.
    """

    script: Iterable[str] = ()
    fail: float = 0
    hang: float = 0
    decline: float = 0
    hang_seconds: float = 5

    def __post_init__(self) -> None:
        self._script = deque(Fault(name) for name in self.script)
        self.seen: Counter[Fault] = Counter()
        self._lock = threading.Lock()

    def draw(self) -> Fault:
        """Choose what happens to one request."""
        with self._lock:
            fault = self._script.popleft() if self._script else self._by_chance()
            self.seen[fault] += 1
            return fault

    def _by_chance(self) -> Fault:
        weights = [self.fail, self.hang, self.decline]
        names = [Fault.FAIL, Fault.HANG, Fault.DECLINE, Fault.NONE]
        return random.choices(names, [*weights, 1 - sum(weights)])[0]  # noqa: S311

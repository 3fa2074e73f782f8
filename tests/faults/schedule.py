"""When which process is killed: drawn from a seed, so that a run can be had again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Fault:
    """Kill the victims ``delay`` seconds after ``after`` messages have executed.

    By progress and not by the clock: the moment is the same one on a slow machine. The delay keeps
    kills from falling into step with the processes.
    """

    after: int
    delay: float
    victims: tuple[str, ...]


def draw(seed: int, victims: Sequence[str], *, rounds: int, messages: int) -> list[Fault]:
    """Return faults in which each victim is killed ``rounds`` times, one to three at once.

    The first comes early, the last before two thirds of the messages have executed.
    """
    chance = random.Random(seed)
    groups: list[tuple[str, ...]] = []
    for _ in range(rounds):
        waiting = chance.sample(victims, len(victims))
        while waiting:
            size = chance.randint(1, 3)
            groups.append(tuple(waiting[:size]))
            waiting = waiting[size:]
    moments = sorted(chance.sample(range(messages // 50, messages * 2 // 3), len(groups)))
    return [
        Fault(moment, chance.uniform(0, 0.03), group)
        for moment, group in zip(moments, groups, strict=True)
    ]

"""What fails when: drawn from a seed, so that a run can be had again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the victims ``delay`` seconds after ``after`` messages have executed.

    By progress and not by the clock: the moment is the same one on a slow machine. The delay keeps
    kills from falling into step with the processes.
    """

    after: int
    delay: float
    victims: tuple[str, ...]


def draw_kills(seed: int, victims: Sequence[str], *, rounds: int, messages: int) -> list[Kill]:
    """Return kills in which each victim is killed ``rounds`` times, one to three at once.

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
        Kill(moment, chance.uniform(0, 0.03), group)
        for moment, group in zip(moments, groups, strict=True)
    ]


class Kind(StrEnum):
    """What can happen to a victim; ``FATE`` says to whom."""

    KILL = "kill"
    # One process of a worker's pool.
    KILL_CHILD = "kill of a pool process"
    PAUSE = "pause"
    TERMINATE = "backends terminated"
    CUT_DATABASE = "cut from the database"
    CUT_BROKER = "cut from the broker"
    HANG_DATABASE = "database link hangs"
    HANG_BROKER = "broker link hangs"
    # Of PostgreSQL: in good order for itself, and at once.
    RESTART = "restart"
    CRASH = "crash"
    # The broker has lost its messages, and whatever it knew.
    FORGET = "data loss"
    WIPE = "data wiped"


PROCESS = (
    Kind.KILL,
    Kind.PAUSE,
    Kind.TERMINATE,
    Kind.CUT_DATABASE,
    Kind.CUT_BROKER,
    Kind.HANG_DATABASE,
    Kind.HANG_BROKER,
)
FATE: dict[str, tuple[Kind, ...]] = {
    "relay": PROCESS,
    "worker": (*PROCESS, Kind.KILL_CHILD),
    "postgresql": (Kind.RESTART, Kind.CRASH),
    "broker": (Kind.KILL, Kind.PAUSE, Kind.FORGET, Kind.WIPE),
}
# Without these a run says nothing about takeovers and redelivery.
ESSENTIAL = (("relay", Kind.KILL), ("relay", Kind.PAUSE), ("broker", Kind.FORGET))
AIMED = (Kind.KILL, Kind.PAUSE)
NUMBER = {"relay": 2, "worker": 2}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that begins when ``after`` messages have been committed.

    By progress and not by the clock: the moment is the same one on a slow machine. ``share`` of
    the kind's longest time it lasts. ``aimed``: a relay is met with messages in its claim, and with
    ``sent`` the broker has been sent them. Nothing else fails while one lasts that is to be
    ``alone``: a run must have a takeover and a redelivery to say anything.
    """

    after: int
    kind: Kind
    victim: str
    share: float = 0.0
    aimed: bool = False
    sent: bool = False
    alone: bool = False

    @property
    def role(self) -> str:
        return self.victim.partition("-")[0]

    def __str__(self) -> str:
        aim = (", sent" if self.sent else ", claimed") if self.aimed else ""
        return f"{self.victim}: {self.kind}{aim} after {self.after}"


def draw_faults(seed: int, number: int, *, messages: int) -> list[Fault]:
    """Return faults, spread over the messages; the essential ones are among the first ``number``.

    Every kind comes once for each role before any comes again.
    """
    chance = random.Random(seed)
    every = [fate for role, kinds in FATE.items() for fate in product([role], kinds)]
    drawn: list[tuple[str, Kind]] = []
    while len(drawn) < number:
        bag = chance.sample(every, len(every))
        if len(bag) > number:
            bag = [fate for fate in bag if fate not in ESSENTIAL]
            bag = [*ESSENTIAL, *bag][:number]
            chance.shuffle(bag)
        drawn += bag
    # From the start of everything to when there is still something to break.
    span = range(min(messages // 20, 150), messages - min(messages // 10, 300))
    moments = sorted(chance.sample(span, number))
    first = {what: drawn.index(what) for what in drawn}
    return [
        _fault(chance, *what, moment, is_first=first[what] == index)
        for index, (what, moment) in enumerate(zip(drawn, moments, strict=False))
    ]


def _fault(chance: random.Random, role: str, kind: Kind, moment: int, *, is_first: bool) -> Fault:
    is_essential = is_first and (role, kind) in ESSENTIAL
    return Fault(
        moment,
        kind,
        f"{role}-{chance.randint(1, NUMBER[role])}" if role in NUMBER else role,
        # A relay that is back at once would take its own messages over.
        share=max(chance.random(), 0.5 * is_essential),
        # What holds no claim is met by the other two.
        aimed=role == "relay" and (kind in AIMED or chance.random() < 0.5),
        # What was sent may be executed before another relay can take it over.
        sent=chance.random() < 0.5 and not is_essential,
        alone=is_essential,
    )

"""A race: real threads, each with database connections of its own, that meet at each statement."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from django.db import connections

PATIENCE = 0.1
"""Seconds after which a racer whose statement does not return is taken to wait for a lock."""
LONGEST = 1.0
"""Seconds that the others wait for a racer that is busy elsewhere."""
BUDGET = 3.0
"""Seconds of waiting in vain; from then on each goes on by itself."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call returned, or what it raised."""

    value: Any = None
    error: BaseException | None = None


class Lockstep:
    """Has the racers issue their SQL statements together.

    So all of them look before the first one writes, which is how a check before an act fails.
    Whoever has ended is not waited for, and nobody for long.
    """

    def __init__(self, racers: int) -> None:
        self._condition = threading.Condition()
        self._racing = racers
        self._waiting = 0
        self._in_statement = 0
        self._round = 0
        self._budget = BUDGET

    def __call__(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        """Execute a statement, as Django's ``execute_wrapper`` has it."""
        self.meet()
        self._count_in_statement(1)
        try:
            return execute(sql, params, many, context)
        finally:
            self._count_in_statement(-1)

    def meet(self) -> None:
        """Wait for the others, as long as that makes sense."""
        with self._condition:
            if self._budget <= 0:
                return
            self._waiting += 1
            if self._waiting >= self._racing:
                self._go()
                return
            begun, began_at = self._round, time.monotonic()
            while not self._condition.wait_for(lambda: self._round != begun, PATIENCE):
                busy_elsewhere = self._racing - self._waiting - self._in_statement
                waited = time.monotonic() - began_at
                if busy_elsewhere <= 0 or waited > LONGEST:
                    self._budget -= waited
                    self._go()
                    return

    def leave(self) -> None:
        """Be waited for no longer."""
        with self._condition:
            self._racing -= 1
            if self._waiting >= self._racing:
                self._go()

    def _count_in_statement(self, by: int) -> None:
        with self._condition:
            self._in_statement += by

    def _go(self) -> None:
        self._waiting = 0
        self._round += 1
        self._condition.notify_all()


def race(operation: Callable[[], Any], racers: int, *, timeout: float, using: str) -> list[Reply]:
    """Call the operation in so many threads at once; return what each got.

    Raises ``AssertionError`` if some have not ended after ``timeout`` seconds.
    """
    lockstep = Lockstep(racers)
    replies: list[Reply] = []

    def run() -> None:
        try:
            connections[using].ensure_connection()
            lockstep.meet()
            with ExitStack() as stack:
                for alias in connections:
                    stack.enter_context(connections[alias].execute_wrapper(lockstep))
                reply = Reply(operation())
        except BaseException as error:
            reply = Reply(error=error)
        finally:
            lockstep.leave()
            connections.close_all()
        replies.append(reply)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(racers)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    alive = sum(thread.is_alive() for thread in threads)
    if alive:
        raise AssertionError(
            f"{alive} of {racers} calls have not ended after {timeout} s: a deadlock, or a call "
            "that waits for what only this test can do. timeout= gives them longer."
        )
    return list(replies)

"""Turns: what a relay does for the ordering keys whose messages it ends."""

from __future__ import annotations

import time
from collections.abc import Collection

from outbox.ordering_querysets import advance_free, idle_keys

# Seconds between two looks for keys that nobody goes on with, and how many keys each looks at.
SWEEP = 1.0
SWEPT_KEYS = 500


class Turns:
    """Gives keys their next turn on one database alias, and never waits for one.

    A key that a producer holds, for as long as its transaction is open, is tried again later. A
    sweep finds keys that wait although nothing of theirs is open: a relay was killed while it had
    such a key in mind, for instance.
    """

    def __init__(self, using: str) -> None:
        self._using = using
        self._held: set[str] = set()
        self._swept_at = float("-inf")
        self._swept_to = ""

    def give(self, keys: Collection[str] = ()) -> None:
        """Go on with these keys and with those that were held, in the current transaction if any.

        One query a second if there are none.
        """
        waiting = self._held | set(keys)
        if time.monotonic() >= self._swept_at + SWEEP:
            idle, self._swept_to = idle_keys(self._using, self._swept_to, SWEPT_KEYS)
            self._swept_at = time.monotonic()
            waiting.update(idle)
        if waiting:
            self._held = advance_free(self._using, waiting)

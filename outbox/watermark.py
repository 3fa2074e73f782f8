"""From where on a claim looks for due messages, so that it does not pass by what is over."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta

from outbox.sweep import Sweep

# A message is due from its INSERT on and seen from its COMMIT on: so long a transaction may take,
# and its messages are found as soon as those of a short one.
LAG = timedelta(seconds=1)
# Each claim looks at everything while that takes no longer than this, and EACH more for what it
# finds. The quickest of the last few counts: a busy machine makes any of them slow.
CHEAP = timedelta(milliseconds=3)
EACH = timedelta(microseconds=20)
JUDGED = 5
# Otherwise what another relay lets go of waits for a look that goes back for a while.
PAUSE_BEHIND = timedelta(seconds=10)
# How far apart the positions are that are remembered for it.
GRAIN = timedelta(seconds=1)


class Watermark:
    """Remembers, for the claims of one relay, before which moment nothing is left to claim.

    The index of due messages begins with the entries of those that are over, until vacuum takes
    them away; an open transaction anywhere keeps it from that for hours, and they must be read
    past. A claim that starts at the watermark does not. It may miss what became due before it and
    appeared after it. So every now and then one starts where the watermark was a while ago, and in
    between a sweep looks at the rest, a little at a time. Moments are the database's.
    """

    # Known when there is a start.
    _last: datetime
    _next_look_behind: datetime

    def __init__(self, behind: timedelta) -> None:
        """``behind``: how long ago the watermark was where a look behind it starts."""
        self._behind = behind
        self._start: datetime | None = None
        self._costs: deque[timedelta] = deque(maxlen=JUDGED)
        self._positions: deque[tuple[datetime, datetime]] = deque()
        self._sweep = Sweep()

    def start(self, now: datetime | None = None) -> datetime | None:
        """Return from which moment on to claim at ``now``; None: look at everything.

        Without ``now`` as it was after the last claim.
        """
        if self._start is None:
            return None
        moment = now or self._last
        if moment < self._last or not self._is_dear():
            return None
        if moment >= self._next_look_behind:
            _, position = self._positions[0]
            return min(position, self._start)
        return self._start

    def note(
        self,
        now: datetime,
        start: datetime | None,
        latest: datetime | None,
        took: timedelta,
        found: int = 0,
    ) -> None:
        """Note a claim that was made at ``now`` from ``start`` on and took so long.

        ``found``: how many messages. ``latest``: when the last of them became due, None without.
        """
        if start is None:
            self._costs.append(took - found * EACH)
            self._positions.clear()
            self._sweep = Sweep()
        if start is None or (self._start and start < self._start):
            self._next_look_behind = now + PAUSE_BEHIND
        self._last = now
        self._start = now - LAG if latest is None else min(now - LAG, latest)
        self._remember(now, self._start)

    def forget(self) -> None:
        """Look at everything with the next claim: messages that were claimed are due again."""
        self._start = None

    def stretch(self, now: datetime) -> tuple[datetime | None, datetime] | None:
        """Return from and before which moment to look whether anything is due; None: not now."""
        start = self.start(now)
        return None if start is None else self._sweep.stretch(now, latest=start)

    def note_stretch(
        self, now: datetime, start: datetime | None, took: timedelta, *, due: bool
    ) -> None:
        """Note a look at a stretch; the next claim starts there if anything is due in it."""
        swept = self._sweep.note(now, start, took)
        if swept or (due and start is None):
            self.forget()
        elif due:
            self._start = start

    def _remember(self, now: datetime, start: datetime) -> None:
        positions = self._positions
        if not positions or now - positions[-1][0] >= GRAIN:
            positions.append((now, start))
        while len(positions) > 1 and now - positions[1][0] >= self._behind:
            positions.popleft()

    def _is_dear(self) -> bool:
        return len(self._costs) == JUDGED and min(self._costs) > CHEAP

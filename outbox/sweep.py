"""A look at all that lies before the watermark, one stretch after the other, back in time."""

from __future__ import annotations

from datetime import datetime, timedelta

# A look at a stretch takes about so long, whatever is dead there, and nothing else is published
# meanwhile. The next is made when a hundred times that has passed.
COST = timedelta(milliseconds=5)
PAUSES = 100
NARROWEST = timedelta(seconds=1)
# What is older is one stretch.
WIDEST = timedelta(days=3650)


class Sweep:
    """Says at which stretch to look next; moments are the database's."""

    _end: datetime | None
    _width: timedelta
    _dear: bool

    def __init__(self) -> None:
        self._next: datetime | None = None
        self._restart()

    def stretch(self, now: datetime, latest: datetime) -> tuple[datetime | None, datetime] | None:
        """Return from and before which moment to look; None: it is not time yet.

        ``latest``: where a sweep begins. Without a moment to look from it ends.
        """
        if self._next is not None and now < self._next:
            return None
        end = self._end or latest
        return (end - self._width if self._width < WIDEST else None), end

    def note(self, now: datetime, start: datetime | None, took: timedelta) -> bool:
        """Note a look; return whether it ended a sweep in which each one was cheap."""
        self._next = now + took * PAUSES
        self._dear = self._dear or took > COST
        if start is None:
            cheap = not self._dear
            self._restart()
            return cheap
        self._end = start
        if took > COST:
            self._width = max(self._width / 2, NARROWEST)
        elif took < COST / 2:
            self._width *= 2
        return False

    def _restart(self) -> None:
        self._end = None
        self._width = NARROWEST
        self._dear = False

"""A file that tells a probe whether the relay still goes round."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class Liveness:
    """The file's modification time is that of the last round, of several loops the slowest's.

    A loop goes round in an outage too: the file says that the process is alive, and not that
    anything is published.
    """

    def __init__(self, path: Path, loops: Iterable[str]) -> None:
        """Raises ``OSError`` where the file cannot be written."""
        path.touch()
        self._path = path
        self._rounds = dict.fromkeys(loops, time.time())

    def beat(self, loop: str) -> None:
        """Tell that this loop goes round."""
        self._rounds[loop] = time.time()
        oldest = min(self._rounds.values())
        # Where it cannot be written the probe sees an old file, and messages go out all the same.
        with suppress(OSError):
            if not self._path.exists():
                self._path.touch()
            os.utime(self._path, (oldest, oldest))

"""What the person who started the demo sees."""

from __future__ import annotations

import time
from typing import TextIO

PLAIN_EVERY = 2.0


class Progress:
    """One line that is rewritten on a terminal; elsewhere a line every two seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._line = ""
        self._shown_at = 0.0
        self._started = time.monotonic()

    def update(self, line: str) -> None:
        """Show the state; it is replaced by the next one."""
        if line == self._line:
            return
        if self._live:
            self._line = line
            self._write(f"\r\x1b[K  {line}")
        elif time.monotonic() - self._shown_at >= PLAIN_EVERY:
            self._line = line
            self._shown_at = time.monotonic()
            self._write(f"         {line}\n")

    def say(self, line: str) -> None:
        """Say what happened, once."""
        self._finish_line()
        self._write(f"[{time.monotonic() - self._started:5.1f}s] {line}\n")

    def show(self, text: str = "") -> None:
        """Write text as it is."""
        self._finish_line()
        self._write(text + "\n")

    def _finish_line(self) -> None:
        if self._live and self._line:
            self._write("\r\x1b[K")
        self._line = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

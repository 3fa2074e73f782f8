"""What a PostgreSQL server's administrator, or its machine, does to it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tests.helpers import wait_for

if TYPE_CHECKING:
    from sample_project.servers import PostgresServer


def crash(postgres: PostgresServer) -> None:
    """Shut it down at once ("immediate"), and start it: it recovers as after a crash."""
    os.kill(postgres.pid, signal.SIGQUIT)
    wait_for(lambda: not postgres.running, message=postgres.log.read_text)
    postgres.start()

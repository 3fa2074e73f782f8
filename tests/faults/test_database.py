"""A relay outlives its database: a restart in good order, and SIGKILL while it holds a claim."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from django.db import connections

from tests.faults.points import stopping
from tests.helpers import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_project.servers import PostgresServer
    from tests.faults.system import System


@pytest.mark.parametrize("broker", ["valkey"], indirect=True)
def test_relay_outlives_the_database(
    system: System, postgres: PostgresServer | None, tell: Callable[[str], None]
) -> None:
    if postgres is None:
        pytest.skip("DATABASE_URL names a server that is not ours to kill")
    relay = system.start_relay(env=stopping("published", signal.SIGSTOP))
    held = system.commit(f"held-{n}" for n in range(20))
    wait_for(lambda: relay.stopped, message=relay.output)
    postgres.kill()
    relay.cont_signal()
    _await_said(relay.output, unavailable=1, again=0)
    postgres.start()
    connections.close_all()
    _await_said(relay.output, unavailable=1, again=1)

    postgres.stop()
    _await_said(relay.output, unavailable=2, again=1)
    postgres.start()
    connections.close_all()
    afterwards = system.commit(f"afterwards-{n}" for n in range(20))
    system.await_published()
    _await_said(relay.output, unavailable=2, again=2)

    published = Counter(system.take_message_ids())
    assert published == Counter(held + held + afterwards)
    tell(f"{len(held)} messages were in the claim of the killed server, and published again")


def _await_said(output: Callable[[], str], *, unavailable: int, again: int) -> None:
    wait_for(
        lambda: (
            output().count("The database 'default' is unavailable") == unavailable
            and output().count("Available again") == again
        ),
        timeout=40,
        message=output,
    )

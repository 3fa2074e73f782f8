"""PostgreSQL and the broker are restarted, and nobody has to do anything about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.db import connections

from tests.faults.ledger import audit, in_flight
from tests.faults.members import Member
from tests.faults.network import Network
from tests.faults.postgresql import crash
from tests.helpers import wait_for

if TYPE_CHECKING:
    from sample_project.servers import PostgresServer
    from tests.faults.system import System

EACH = 20


@pytest.mark.slow
def test_need_no_hand(system: System, postgres: PostgresServer | None) -> None:
    if postgres is None:
        pytest.skip("DATABASE_URL names a server that is not ours to restart")
    env = {"OUTBOX_REDELIVER_AFTER": "3"}
    with Network() as network:
        members = [Member(name, system, network, env) for name in ("relay-1", "worker-1")]
        for member in members:
            member.start()

        def executed() -> bool:
            for member in members:
                member.supervise()
            return in_flight() == 0

        def server() -> None:
            system.broker.flush()
            system.broker.server.kill()
            system.broker.server.start()

        for name, restart in {
            "nothing": lambda: None,
            "restart of PostgreSQL": postgres.restart,
            "crash of PostgreSQL": lambda: crash(postgres),
            "restart of the broker": system.broker.server.restart,
            "kill of the broker": server,
        }.items():
            system.commit(f"in flight at the {name} {n}" for n in range(EACH))
            connections.close_all()
            restart()
            system.commit(f"after the {name} {n}" for n in range(EACH))
            wait_for(executed, timeout=60, interval=0.1, message=system.describe)
        relay, worker = members
        # kombu's Redis transport lets a worker end when the server dies at the wrong moment.
        assert not relay.ends
        assert worker.ends["worker"] <= (0 if system.broker.is_amqp else 2)
        for member in members:
            member.stop()
    assert audit().violations() == [], str(audit())

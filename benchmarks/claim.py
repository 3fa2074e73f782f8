"""What claiming and settling costs PostgreSQL, with a broker that confirms everything at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Figure, cpu_seconds, project

if TYPE_CHECKING:
    from outbox.outgoing import Outgoing, Published

MESSAGES = 40_000

BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE backend_type = 'client backend' AND datname = current_database()
"""


class Confirming:
    """Stands in for a publisher."""

    def connect(self) -> None:
        pass

    def publish(self, messages: Sequence[Outgoing], timeout: float) -> Published:
        from outbox.outgoing import Published

        return Published(messages, confirmed={message.id for message in messages})

    def await_confirms(self, result: Published) -> None:
        pass

    def is_empty(self, queue: str) -> bool:
        return True

    def close(self) -> None:
        pass


def claim_settle(rounds: int = 3) -> list[Figure]:
    """Drain rows at batch 500; read the CPU time of the relay's backends before and after."""
    with project("valkey"):
        from django.db import transaction

        from outbox.models import OutboxMessage
        from outbox.relay import Relay
        from tests.project.tasks import record, record_once

        relay: Any = Relay(batch_size=500)
        relay.publisher = Confirming()
        tasks = {"unguarded": record, "guarded": record_once}
        taken: dict[str, list[float]] = {name: [] for name in tasks}
        for _, (name, task) in itertools.product(range(rounds), tasks.items()):
            for _ in range(MESSAGES // 1000):
                with transaction.atomic():
                    OutboxMessage.objects.enqueue_many([task.s("x")] * 1000)
            before = _backends_seconds()
            relay.drain()
            taken[name].append((_backends_seconds() - before) / MESSAGES * 1e6)
            print(f"  {name}: {taken[name][-1]:.1f} us")
            assert not OutboxMessage.objects.pending().exists()
        relay.close()
    return [
        Figure(
            f"claim and settle, CPU of the backends a message, {name}",
            tuple(values),
            unit="us",
            at_most=15,
        )
        for name, values in taken.items()
    ]


def _backends_seconds() -> float:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(BACKENDS)
        return sum(cpu_seconds(pid) for (pid,) in cursor.fetchall())

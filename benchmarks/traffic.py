"""Producers and a relay as processes of their own, and when their messages are at the broker."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from celery import current_app

if TYPE_CHECKING:
    from sample_project.processes import Process
    from tests.servers.children import Children

DELIVERED_WITHIN = {50: 20, 99: 80}
"""Milliseconds from the commit to the broker that are wanted of so many in a hundred."""


class Arrivals:
    """A consumer of the default queue: when each message came, by the monotonic clock."""

    def __init__(self) -> None:
        self.moments: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._consume)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def latencies(self, committed: dict[str, float]) -> list[float]:
        """Return the seconds from each commit to the message's arrival, when all have arrived."""
        from tests.helpers import wait_for

        wait_for(lambda: committed.keys() <= self.moments.keys(), timeout=60)
        return [max(0, self.moments[id] - moment) for id, moment in committed.items()]

    def _consume(self) -> None:
        app: Any = current_app
        with app.connection_for_read() as connection:
            queue = app.amqp.queues[app.conf.task_default_queue]
            with connection.Consumer(queue, on_message=self._note, no_ack=True):
                while not self._stop.is_set():
                    try:
                        connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    def _note(self, message: Any) -> None:
        self.moments[message.headers["id"]] = time.monotonic()


@contextmanager
def processes() -> Iterator[Children]:
    """Start processes on this benchmark's servers; end what still runs."""
    from tests.servers.children import Children

    with tempfile.TemporaryDirectory() as directory:
        children = Children(Path(directory), {"CELERY_BROKER_URL": os.environ["CELERY_BROKER_URL"]})
        try:
            yield children
        finally:
            children.end()


@contextmanager
def relaying(children: Children, *module: str) -> Iterator[Process]:
    """Have a relay run: ``outbox_relay``, unless ``module`` names another way to start it."""
    from tests.helpers import wait_for

    relay = children.start("relay", *(module or ("django", "outbox_relay")))
    wait_for(lambda: "Relaying" in relay.output() or not relay.running, message=relay.output)
    assert relay.running, relay.output()
    yield relay
    relay.terminate()
    relay.wait()


def produce(
    children: Children, *, rate: float, seconds: float, messages: int = 1, hold: float = 0
) -> dict[str, float]:
    """Commit at that rate for so long; return when each message was committed."""
    arguments = map(str, (rate, seconds, messages, hold))
    producer = children.start("producer", "benchmarks.producer", *arguments)
    assert producer.wait(seconds + 60) == 0, producer.output()
    committed: dict[str, float] = {}
    for line in producer.output().splitlines():
        committed |= json.loads(line)
    return committed

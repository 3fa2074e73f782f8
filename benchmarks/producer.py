"""``python -m benchmarks.producer RATE SECONDS MESSAGES HOLD``: a web process, as it were.

It commits transactions of so many messages RATE times a second, each open for HOLD seconds at
least, and prints when each message was committed, by the machine's monotonic clock.
"""

from __future__ import annotations

import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

THREADS = 10


def produce(rate: float, seconds: float, messages: int, hold: float) -> dict[str, float]:
    """Commit from one thread, at moments that keep no step with a relay's polling."""
    from django.db import connection, transaction

    from outbox.models import OutboxMessage
    from tests.project.tasks import record

    committed: dict[str, float] = {}
    began = time.monotonic()
    due = began
    while (due := due + random.uniform(0.5, 1.5) / rate) < began + seconds:
        time.sleep(max(0, due - time.monotonic()))
        with transaction.atomic():
            rows = OutboxMessage.objects.enqueue_many([record.s("x")] * messages)
            time.sleep(hold)
        moment = time.monotonic()
        committed |= dict.fromkeys((str(row.pk) for row in rows), moment)
    connection.close()
    return committed


def main(rate: float, seconds: float, messages: float, hold: float) -> None:
    import django

    django.setup()
    with ThreadPoolExecutor(THREADS) as pool:
        running = [
            pool.submit(produce, rate / THREADS, seconds, int(messages), hold)
            for _ in range(THREADS)
        ]
    for thread in running:
        print(json.dumps(thread.result()))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))

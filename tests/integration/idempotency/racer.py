"""A process that runs one operation as soon as the starting lock is free, and tells what it got.

``python -m tests.integration.idempotency.racer <starting lock> <label>``
"""

from __future__ import annotations

import sys

import django


def main(start: int, label: str) -> str:
    from django.db import connection

    from idempotency import make_key
    from idempotency.exceptions import KeyInProgress
    from idempotency.models import IdempotencyKey
    from tests.project.models import Effect

    # A set: its order, and hash(), differ between hash seeds.
    key = make_key("race", {label, "b", "c"})
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock_shared(%s)", [start])
    try:
        outcome = IdempotencyKey.objects.run_once(
            key, lambda: Effect.objects.create(label=label).pk, namespace="race"
        )
    except KeyInProgress:
        return "in progress"
    return "replayed" if outcome.replayed else "executed"


if __name__ == "__main__":
    django.setup()
    sys.stdout.write(main(int(sys.argv[1]), sys.argv[2]))

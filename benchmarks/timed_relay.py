"""``python -m benchmarks.timed_relay``: ``outbox_relay``, which tells at its end of each claim.

When it began, by the machine's monotonic clock, and how many seconds it took.
"""

from __future__ import annotations

import json
import time
from typing import Any

import django
from django.core.management import call_command


def main() -> None:
    django.setup()
    from outbox.querysets import OutboxQuerySet

    claims: list[tuple[float, float]] = []
    claim = OutboxQuerySet.claim

    def timed(self: OutboxQuerySet, *args: Any) -> Any:
        began = time.monotonic()
        try:
            return claim(self, *args)
        finally:
            claims.append((began, time.monotonic() - began))

    setattr(OutboxQuerySet, "claim", timed)  # noqa: B010
    call_command("outbox_relay")
    print(json.dumps(claims))


if __name__ == "__main__":
    main()

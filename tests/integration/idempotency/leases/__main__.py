"""A process of these tests: ``python -m <this package> <what> <arguments>``."""

from __future__ import annotations

import sys
from pathlib import Path

import django

django.setup()

from tests.integration.idempotency.leases import guarded  # noqa: E402

what, *arguments = sys.argv[1:]
if what == "race":
    kind, racers = arguments
    print(*guarded.race_in_threads(kind, int(racers)))  # noqa: T201
elif what == "pause":
    where, kind, go = arguments
    guarded.paused(where, kind, Path(go))

from __future__ import annotations

import os
import signal

from django.apps import AppConfig


class FaultsConfig(AppConfig):
    name = "tests.faults"
    label = "faults"

    def ready(self) -> None:
        """Switch on what the environment asks for: see ``points``, ``looks``, ``planted``."""
        from tests.faults import deliveries, looks, planted, points  # noqa: F401

        points.tell_batches()
        if point := os.environ.get(points.POINT):
            points.stop_at(point, signal.Signals[os.environ[points.SIGNAL]])
        if os.environ.get(looks.DEAR_LOOKS):
            looks.make_dear()
        if bug := os.environ.get(planted.BUG):
            planted.BUGS[bug]()

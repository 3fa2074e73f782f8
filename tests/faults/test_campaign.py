"""A short run of everything at once; ``python -m tests.faults.run`` does more of the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.campaign import Campaign, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_project.servers import PostgresServer
    from tests.faults.system import System

MESSAGES = 1500
FAULTS = 8
RATE = 75.0  # messages a second


@pytest.mark.slow
def test_everything_takes_effect_once(
    system: System, postgres: PostgresServer | None, seed: int, tell: Callable[[str], None]
) -> None:
    if postgres is None:
        pytest.skip("DATABASE_URL names a server that is not ours to restart")
    plan = Plan(seed, messages=MESSAGES, faults=FAULTS, rate=RATE)
    outcome = Campaign(system, postgres, plan).run()
    tell(str(outcome))
    assert outcome.violations() == [], "\n".join([str(outcome), *outcome.suspects])
    assert outcome.void() == [], f"void: {outcome}"

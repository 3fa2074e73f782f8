"""The system under test, its seed, and a line in the terminal for what each run went through."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.faults.system import System

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.brokers import Broker
    from tests.servers.children import Children

_told = pytest.StashKey[list[str]]()


@pytest.fixture
def system(children: Children, broker: Broker) -> System:
    """The default database with this test's broker."""
    return System(children, broker)


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """FAULTS_SEED, or else the seed of the test run's order, which pytest prints at its start."""
    return int(os.environ.get("FAULTS_SEED") or pytestconfig.getoption("randomly_seed"))


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Add a line to the summary at the end of the test run, under the test's name."""
    told = request.config.stash.setdefault(_told, [])
    return lambda text: told.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if told := config.stash.get(_told, None):
        terminalreporter.section("faults")
        for line in told:
            terminalreporter.line(line)

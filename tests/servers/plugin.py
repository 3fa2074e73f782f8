"""Gives every test run a PostgreSQL of its own, unless DATABASE_URL names one.

A plugin (``-p tests.servers.plugin``), because pytest-django reads the settings before any
conftest. Only the address is fixed here; the server starts when the first test needs it.
``TEST_POSTGRES_BIN`` names the directory of the PostgreSQL programs to test against.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sample_project.servers import PostgresServer, ServerMissing
from tests.servers.missing import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

# The address that a run chose for itself: a process of pytest-xdist inherits that of its parent,
# and has a server of its own.
CHOSEN = "TEST_CHOSEN_DATABASE_URL"

_server = pytest.StashKey[PostgresServer]()
_problem = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    if os.environ.get("DATABASE_URL") == os.environ.get(CHOSEN):
        try:
            server = PostgresServer(
                bin_directory=os.environ.get("TEST_POSTGRES_BIN") or None,
                settings={"fsync": "off", "full_page_writes": "off"},
            )
        except ServerMissing as error:
            early_config.stash[_problem] = str(error)
        else:
            early_config.stash[_server] = server
            early_config.add_cleanup(server.close)
            os.environ["DATABASE_URL"] = os.environ[CHOSEN] = server.url
    return (yield)


def pytest_report_header(config: pytest.Config) -> str:
    server = config.stash.get(_server, None)
    return f"postgresql: {server.bin_directory if server else 'as DATABASE_URL says'}"


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> PostgresServer | None:
    """The PostgreSQL server of this run; None where DATABASE_URL named one."""
    if problem := pytestconfig.stash.get(_problem, None):
        missing(problem)
    server = pytestconfig.stash.get(_server, None)
    return server.start() if server else None

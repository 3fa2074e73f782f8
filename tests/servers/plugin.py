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

class PostgresPlugin:
    """Holds the server of this test run."""

    def __init__(self) -> None:
        self.server: PostgresServer | None = None
        self.problem = ""
        if "DATABASE_URL" in os.environ:
            return
        try:
            self.server = PostgresServer(
                bin_directory=os.environ.get("TEST_POSTGRES_BIN") or None,
                settings={"fsync": "off", "full_page_writes": "off"},
            )
        except ServerMissing as error:
            self.problem = str(error)
        else:
            os.environ["DATABASE_URL"] = self.server.url

    @pytest.fixture(scope="session")
    def postgres(self) -> Iterator[PostgresServer | None]:
        """The PostgreSQL server of this run; None where DATABASE_URL named one."""
        if self.problem:
            missing(self.problem)
        if self.server is None:
            yield None
        else:
            with self.server:
                yield self.server


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config,
) -> Iterator[None]:
    early_config.pluginmanager.register(PostgresPlugin(), "outbox-postgres")
    return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    plugin = config.pluginmanager.get_plugin("outbox-postgres")
    if plugin is not None and plugin.server is not None:
        plugin.server.close()

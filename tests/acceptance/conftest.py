"""One demo for the tests that only look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from sample_project.servers import PostgresServer, ServerMissing
from tests.acceptance.demos import Demo, start_demo
from tests.servers.missing import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sample_project.servers import ValkeyServer


class Shop(NamedTuple):
    """A demo whose ledger is printed and which stays up."""

    demo: Demo
    url: str
    user: str
    password: str
    database_url: str


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[Shop]:
    """A demo on servers that it was given, not on its own."""
    try:
        postgres = PostgresServer(database="shop")
    except ServerMissing as error:
        missing(str(error))
    with postgres:
        demo = start_demo(
            tmp_path_factory.mktemp("demo") / "demo.log",
            "--orders=10",
            env={"DATABASE_URL": postgres.url, "CELERY_BROKER_URL": valkey.url},
        )
        try:
            demo.wait_for("Ctrl-C ends it all.")
            yield Shop(
                demo,
                demo.found(r"Shop +(http://\S+?)/\s"),
                demo.found(r"user (\w+)"),
                demo.found(r"password (\S+)"),
                postgres.url,
            )
        finally:
            demo.process.stop(timeout=60)
            demo.end()

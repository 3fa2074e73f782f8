"""One demo, the whole of it, for the tests that only look at it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.acceptance.demos import Demo, start_demo

if TYPE_CHECKING:
    from collections.abc import Iterator


class Shop(NamedTuple):
    """A demo whose ledger is printed and which stays up."""

    demo: Demo
    url: str
    user: str
    password: str


@pytest.fixture(scope="package")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The demo of ``make demo``, on servers of its own."""
    demo = start_demo(tmp_path_factory.mktemp("demo") / "demo.log")
    try:
        demo.wait_for("Ctrl-C ends it all.")
        yield Shop(
            demo,
            demo.found(r"Shop +(http://\S+?)/\s"),
            demo.found(r"user (\w+)"),
            demo.found(r"password (\S+)"),
        )
        demo.process.stop(signal.SIGINT, timeout=60)
    finally:
        demo.end()
    assert demo.process.returncode == 128 + signal.SIGINT, demo.output

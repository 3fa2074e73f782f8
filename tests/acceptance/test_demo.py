"""The demo: its ledger balances, it says why when it does not, and it leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from sample_project.servers import PostgresServer
from tests.acceptance.demos import ROOT, alive, descendants, start_demo
from tests.helpers import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from sample_project.servers import ValkeyServer
    from tests.acceptance.conftest import Shop


@pytest.mark.slow
def test_two_hundred_orders_each_message_twice_two_kills_and_the_ledger_balances(
    shop: Shop,
) -> None:
    demo = shop.demo
    assert demo.figure("orders accepted over HTTP") == 200
    assert demo.figure("orders committed") == 200
    assert demo.figure("messages published") == 400
    assert demo.figure("executed") == 400
    assert "redelivered" in demo.output
    assert "The ledger balances." in demo.output
    assert demo.figure("receipts") == 200
    assert demo.figure("payments") == 200
    assert demo.figure("lost") == 0
    assert demo.figure("doubled") == 0
    assert demo.figure("published once more") >= 400
    assert demo.figure("deliveries to the worker") >= 800
    assert demo.figure("duplicates suppressed") >= 400
    # The kills came in the middle: there was work that nobody did.
    assert int(demo.found(r"(\d+) messages wait for it\. A new worker")) > 0
    assert int(demo.found(r"(\d+) messages wait for it, committed\. A new relay")) > 0
    assert demo.output.count("orders ") > 3, "nothing was to be seen while it ran"


def test_servers_that_are_given_are_used_and_it_leaves_after_the_ledger(
    tmp_path: Path, valkey: ValkeyServer
) -> None:
    with PostgresServer(database="shop") as postgres:
        env = {"DATABASE_URL": postgres.url, "CELERY_BROKER_URL": valkey.url}
        demo = start_demo(tmp_path / "demo.log", "--exit", "--orders=5", env=env)
        try:
            assert demo.process.wait(timeout=300) == 0, demo.output
        finally:
            demo.end()
        with psycopg.connect(postgres.url) as connection:
            assert connection.execute("SELECT count(*) FROM shop_payment").fetchone() == (5,)
    assert "runs on port" not in demo.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_the_middle_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    demo = start_demo(tmp_path / "demo.log", "--orders=20")
    try:
        demo.wait_for("A new worker starts.")
        started = descendants(demo.process.pid)
        # PostgreSQL, Valkey, the web server, the worker and its pool, the relay.
        assert len(started) > 6
        demo.process.send_signal(number)
        status = demo.process.wait(timeout=60)
    finally:
        demo.end()
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    wait_for(
        lambda: not any(map(alive, started)),
        timeout=60,
        message=lambda: f"still there: {[pid for pid in started if alive(pid)]}",
    )


def test_a_database_that_does_not_answer_is_one_clear_line(tmp_path: Path) -> None:
    env = {
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/shop",
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
    }
    demo = start_demo(tmp_path / "demo.log", "--exit", env=env)
    try:
        assert demo.process.wait(timeout=60) == 1
    finally:
        demo.end()
    assert "Connection refused" in demo.output
    assert "Traceback" not in demo.output


def test_a_demo_without_orders_is_refused() -> None:
    command = [sys.executable, "manage.py", "demo", "--exit", "--orders", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "--orders must be at least 1" in ended.stderr

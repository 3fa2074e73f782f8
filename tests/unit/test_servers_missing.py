"""A server that is not on this machine: a skip that says what to install, a failure in CI."""

from __future__ import annotations

import pytest

from tests.servers.missing import missing

REASON = "Redis is missing: apt-get install redis-server"


def test_a_missing_server_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=REASON):
        missing(REASON)


def test_a_missing_server_is_a_failure_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=REASON):
        missing(REASON)

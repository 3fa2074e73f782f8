from __future__ import annotations

import pytest

from tests.helpers import wait_for


def test_wait_for_returns_the_first_true_value() -> None:
    values = iter([0, "", None, "done", "too far"])
    assert wait_for(lambda: next(values), interval=0) == "done"


def test_wait_for_tells_what_did_not_happen() -> None:
    with pytest.raises(AssertionError, match=r"Not ready: 7 left after 0\.01 s: 0"):
        wait_for(lambda: 0, timeout=0.01, interval=0, message=lambda: "Not ready: 7 left")

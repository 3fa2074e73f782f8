"""The file that a probe looks at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from outbox.liveness import Liveness

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is: the last item."""
    times = [1000.0]
    monkeypatch.setattr("outbox.liveness.time.time", lambda: times[-1])
    return times


def test_it_is_there_before_the_first_round(tmp_path: Path) -> None:
    Liveness(tmp_path / "alive", ["default"])
    assert (tmp_path / "alive").exists()


def test_it_is_as_old_as_the_last_round(tmp_path: Path, clock: list[float]) -> None:
    alive = Liveness(tmp_path / "alive", ["default"])
    clock.append(1010.5)
    alive.beat("default")
    assert (tmp_path / "alive").stat().st_mtime == 1010.5


def test_of_several_loops_it_tells_of_the_slowest(tmp_path: Path, clock: list[float]) -> None:
    alive = Liveness(tmp_path / "alive", ["default", "other"])
    clock.append(1010)
    alive.beat("default")
    assert (tmp_path / "alive").stat().st_mtime == 1000
    alive.beat("other")
    assert (tmp_path / "alive").stat().st_mtime == 1010


def test_it_comes_back_when_somebody_removed_it(tmp_path: Path) -> None:
    alive = Liveness(tmp_path / "alive", ["default"])
    (tmp_path / "alive").unlink()
    alive.beat("default")
    assert (tmp_path / "alive").exists()


def test_a_place_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    alive = Liveness(directory / "alive", ["default"])
    (directory / "alive").unlink()
    directory.rmdir()
    alive.beat("default")


def test_a_place_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        Liveness(tmp_path / "absent" / "alive", ["default"])
    assert not os.listdir(tmp_path)

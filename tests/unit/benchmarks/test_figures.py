from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks import figures
from benchmarks.harness import Figure, Ratio

if TYPE_CHECKING:
    from pathlib import Path

FAST = Ratio("fast", (9.0, 10.0, 12.0), at_least=8)
SLOW = Ratio("slow", (1.6, 1.8, 1.7), at_most=1.5)
PLAIN = Ratio("plain", (0.5,))
TIME = Figure("time", (20.0, 10.0, 30.0), unit="ms", at_most=15)


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(figures, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(figures, "TABLE", tmp_path / "figures.md")
    monkeypatch.setattr(figures, "PICTURE", tmp_path / "figures.svg")
    return tmp_path


def test_the_table_has_a_row_for_each_ratio() -> None:
    lines = figures.table({"one": [FAST, SLOW], "other": [PLAIN, TIME]}).splitlines()
    assert lines[2:] == [
        "| one | fast | 10 | 9 | 12 | 3 | at least 8 |",
        "| one | slow | 1.7 | 1.6 | 1.8 | 3 | at most 1.5: missed |",
        "| other | plain | 0.50 | 0.50 | 0.50 | 1 |  |",
        "| other | time, ms | 20 | 10 | 30 | 3 | at most 15: missed |",
    ]
    assert {line.count("|") for line in lines} == {8}


def test_what_was_kept_is_written_in_the_order_of_the_names(docs: Path) -> None:
    figures.keep("second", [SLOW])
    figures.keep("first", [FAST, PLAIN, TIME])
    text = figures.write(["first", "second", "never run"])
    assert text == figures.table({"first": [FAST, PLAIN, TIME], "second": [SLOW]})
    assert (docs / "figures.md").read_text().endswith(text)
    assert figures.machine() in (docs / "figures.md").read_text()
    picture = (docs / "figures.svg").read_text()
    assert "plain" in picture
    assert "time" not in picture


def test_a_benchmark_that_runs_again_replaces_what_it_found(docs: Path) -> None:
    figures.keep("one", [FAST])
    figures.keep("one", [PLAIN])
    assert figures.write(["one"]) == figures.table({"one": [PLAIN]})

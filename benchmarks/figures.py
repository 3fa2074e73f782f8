"""What the benchmarks found: kept after each, and written as a table and a picture for the docs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import plot
from benchmarks.harness import Figure, Ratio

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / ".make" / "benchmarks"
TABLE = ROOT / "docs" / "performance-figures.md"
PICTURE = ROOT / "docs" / "images" / "performance.svg"


def keep(name: str, found: Sequence[Ratio | Figure]) -> None:
    """Keep what the benchmark found until it runs again."""
    KEPT.mkdir(parents=True, exist_ok=True)
    figures = [{"kind": type(figure).__name__, **asdict(figure)} for figure in found]
    kept = {"on": machine(), "figures": figures}
    _kept(name).write_text(json.dumps(kept, indent=1))


def write(names: Iterable[str]) -> str:
    """Write what is kept of these benchmarks into the docs; return the table."""
    kept = {name: json.loads(_kept(name).read_text()) for name in names if _kept(name).exists()}
    found = {name: [_figure(**figure) for figure in each["figures"]] for name, each in kept.items()}
    text = table(found)
    machines = "; ".join(dict.fromkeys(each["on"] for each in kept.values()))
    TABLE.write_text(f"{HEAD.format(machines=machines)}{text}")
    ratios = [one for each in found.values() for one in each if isinstance(one, Ratio)]
    PICTURE.write_text(plot.svg(ratios))
    return text


def table(found: Mapping[str, Sequence[Ratio | Figure]]) -> str:
    """Return the figures as a Markdown table, a row for each."""
    lines = [
        "| Benchmark | What | Middle | Lowest | Highest | Rounds | Wanted |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    lines += [_line(name, figure) for name, figures in found.items() for figure in figures]
    return "\n".join(lines) + "\n"


def _line(name: str, figure: Ratio | Figure) -> str:
    values = [figure.middle, min(figure.values), max(figure.values)]
    what = f"{figure.title}, {figure.unit}" if isinstance(figure, Figure) else figure.title
    cells = [name, what, *map(plot.number, values), str(len(figure.values)), wanted(figure)]
    return f"| {' | '.join(cells)} |"


def wanted(figure: Ratio | Figure) -> str:
    """Return the bound that the figure is meant to keep, and whether it missed it."""
    if figure.at_least is not None:
        bound = f"at least {figure.at_least:g}"
    elif figure.at_most is not None:
        bound = f"at most {figure.at_most:g}"
    else:
        return ""
    return f"{bound}: missed" if figure.missed else bound


def machine() -> str:
    """Return what the figures were measured on, in a few words."""
    return f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def _kept(name: str) -> Path:
    return KEPT / f"{name}.json"


def _figure(kind: str, values: list[float], **named: Any) -> Ratio | Figure:
    return (Ratio if kind == Ratio.__name__ else Figure)(values=tuple(values), **named)


HEAD = """# Figures

Written by `make bench`, which measures them on your machine; [performance.md](performance.md) says
what they mean. The middle one of the rounds, the lowest and the highest; what has no unit is a
ratio of two measurements of the same run. Measured on: {machines}.

![Each ratio with its spread](images/performance.svg)

"""

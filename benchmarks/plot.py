"""Ratios as a picture: a bar for each, its spread, and the bound that it is meant to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.harness import Ratio

WIDTH = 960
LABELS = 560
"""Pixels for the titles, left of the bars."""
END = 900
"""Where the largest value is; the numbers come after it."""
TOP, ROW, BAR = 40, 26, 12
LEGEND = "Bar: the middle round, orange where it misses. Line: lowest to highest. Violet: wanted."
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)

STYLE = """
text { font: 12px sans-serif; fill: #1f2328; }
.axis { fill: #59636e; }
.grid { stroke: #d1d9e0; }
.one { stroke: #59636e; }
.bar { fill: #54aeff; }
.missed { fill: #fd8c73; }
.spread { stroke: #1f2328; stroke-width: 1.5; }
.bound { stroke: #8250df; stroke-width: 3; }
"""


def svg(ratios: Sequence[Ratio]) -> str:
    """Return a bar chart of the ratios as SVG text, on a logarithmic axis that begins below 1.

    Bars run from 1 to the middle value: to the left what is less, to the right what is more.
    """
    ends = [value for ratio in ratios for value in (*ratio.values, ratio.at_least, ratio.at_most)]
    known = [value for value in ends if value is not None and value > 0]
    low, high = min([*known, 1]) * 0.9, max([*known, 1]) * 1.1

    def x(value: float) -> float:
        share = math.log(max(value, low) / low) / math.log(high / low)
        return round(LABELS + share * (END - LABELS), 1)

    height = TOP + ROW * len(ratios) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text class="axis" x="10" y="{TOP - 14}">{LEGEND}</text>',
        *(_tick(x(tick), tick, height) for tick in TICKS if low <= tick <= high),
    ]
    for position, ratio in enumerate(ratios):
        middle = TOP + ROW * position + ROW / 2
        parts += _row(ratio, middle, [x(value) for value in _points(ratio)], x(1))
    return "\n".join([*parts, "</svg>", ""])


def number(value: float) -> str:
    """Return the value as people read it: three digits."""
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}"


def _points(ratio: Ratio) -> list[float]:
    bounds = [bound for bound in (ratio.at_least, ratio.at_most) if bound is not None]
    return [ratio.middle, min(ratio.values), max(ratio.values), *bounds]


def _tick(x: float, value: float, height: int) -> str:
    kind = "one" if value == 1 else "grid"
    return (
        f'<text class="axis" x="{x}" y="{TOP - 14}" text-anchor="middle">{value:g}</text>'
        f'<line class="{kind}" x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{height - 6}"/>'
    )


def _row(ratio: Ratio, y: float, points: list[float], one: float) -> list[str]:
    middle, least, most, *bounds = points
    kind = "missed" if ratio.missed else "bar"
    left, width = min(one, middle), round(abs(middle - one), 1)
    return [
        f'<text x="{LABELS - 10}" y="{y + 4:g}" text-anchor="end">{escape(ratio.title)}</text>',
        f'<rect class="{kind}" x="{left}" y="{y - BAR / 2:g}" width="{width}" height="{BAR}"/>',
        f'<line class="spread" x1="{least}" x2="{most}" y1="{y:g}" y2="{y:g}"/>',
        *(
            f'<line class="bound" x1="{x}" x2="{x}" y1="{y - BAR:g}" y2="{y + BAR:g}"/>'
            for x in bounds
        ),
        f'<text x="{END + 10}" y="{y + 4:g}">{number(ratio.middle)}</text>',
    ]

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from benchmarks.harness import Ratio
from benchmarks.plot import LABELS, WIDTH, number, svg

SLOWER = Ratio("slower & by <half>", (0.4, 0.5, 0.6))
KEPT = Ratio("kept", (9.0, 10.0, 12.0), at_least=8)
MISSED = Ratio("missed", (1.6, 1.8, 1.7), at_most=1.5)


def drawn(*ratios: Ratio) -> ET.Element:
    return ET.fromstring(svg(ratios))  # noqa: S314 (our own text)


def of_class(picture: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in picture.iter() if element.get("class") == name]


def at(element: ET.Element, *names: str) -> list[float]:
    return [float(element.attrib[name]) for name in names]


def test_each_ratio_has_its_title_and_its_middle_value() -> None:
    texts = [element.text for element in drawn(SLOWER, KEPT).iter() if element.text]
    assert {"slower & by <half>", "0.50", "kept", "10"} <= set(texts)


def test_bars_begin_at_one_and_end_at_the_middle_value() -> None:
    picture = drawn(SLOWER, KEPT)
    (one,) = of_class(picture, "one")
    (at_one,) = at(one, "x1")
    slower, kept = of_class(picture, "bar")
    assert sum(at(slower, "x", "width")) == pytest.approx(at_one)
    assert at(kept, "x") == [at_one]
    assert at(slower, "x")[0] < at_one < sum(at(kept, "x", "width"))


def test_the_spread_goes_from_the_lowest_to_the_highest() -> None:
    (spread,) = of_class(drawn(KEPT), "spread")
    (bar,) = of_class(drawn(KEPT), "bar")
    low, high = at(spread, "x1", "x2")
    assert low < sum(at(bar, "x", "width")) < high


def test_a_bound_is_drawn_where_it_is_and_a_missed_one_is_told_by_the_bar() -> None:
    picture = drawn(KEPT, MISSED)
    kept, missed_bound = of_class(picture, "bound")
    (bar,), (other,) = of_class(picture, "bar"), of_class(picture, "missed")
    assert at(kept, "x1")[0] < sum(at(bar, "x", "width"))
    assert at(missed_bound, "x1")[0] < sum(at(other, "x", "width"))


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (SLOWER, False),
        (KEPT, False),
        (MISSED, True),
        (Ratio("low", (7.9,), at_least=8), True),
        (Ratio("on it", (8.0,), at_least=8, at_most=8), False),
    ],
    ids=lambda value: getattr(value, "title", ""),
)
def test_the_middle_value_decides_whether_a_bound_is_kept(ratio: Ratio, expected: bool) -> None:
    assert ratio.missed is expected


def test_everything_is_within_the_picture() -> None:
    picture = drawn(SLOWER, KEPT, MISSED, Ratio("negative", (-0.2, 0.001, 250.0)))
    width, height = map(float, picture.attrib["viewBox"].split()[2:])
    assert width == WIDTH
    for element in picture.iter():
        for name in ("x", "x1", "x2"):
            assert 0 <= float(element.get(name, 0)) <= width
        for name in ("y", "y1", "y2"):
            assert 0 <= float(element.get(name, 0)) <= height
    for bar in of_class(picture, "bar"):
        assert at(bar, "x")[0] >= LABELS
        assert at(bar, "width")[0] >= 0


def test_without_ratios_it_is_still_a_picture() -> None:
    assert drawn().tag.endswith("svg")


@pytest.mark.parametrize(
    ("value", "text"), [(0.4, "0.40"), (1.0, "1"), (1.498, "1.5"), (11.64, "11.6"), (250.4, "250")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text

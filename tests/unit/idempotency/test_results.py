"""A stored result comes back equal in value and type, or is refused before it is stored."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotency.exceptions import ImproperlyUsed, ResultUnavailable
from idempotency.results import dumps, loads

Pair = namedtuple("Pair", "a b")  # noqa: PYI024


class Text(str):
    __slots__ = ()


VALUES: list[Any] = [
    None,
    False,
    True,
    0,
    -1,
    10**5000,
    0.0,
    -0.0,
    1.5,
    math.inf,
    "",
    "é\x00\u2028",
    "\ud800",
    [],
    {},
    (),
    set(),
    frozenset(),
    b"",
    b"\x00\xff",
    Decimal(0),
    Decimal("1.00"),
    Decimal("-Infinity"),
    date(2026, 1, 1),
    datetime(2026, 1, 1, 12, 30, 0, 1),  # noqa: DTZ001
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Zurich")),
    time(1, 2, 3, 4),
    time(1, tzinfo=ZoneInfo("Europe/Zurich")),
    timedelta(days=-1, microseconds=1),
    timedelta(0),
    UUID(int=1),
    (1, [2, {"a": (3,)}]),
    {"a": [None, {"b": Decimal(1)}]},
    {1: "a", "1": "b", (1, 2): "c", None: "d"},
    {"=": "set", "v": [1]},
    {"=": 1},
    {frozenset({1}), (2, 3)},
    [1, 1.0, True, "1", Decimal(1)],
]


def types(value: Any) -> Any:
    if isinstance(value, dict):
        return dict, [(types(name), types(item)) for name, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [types(item) for item in value]
    return type(value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_comes_back_equal_in_value_and_type(value: Any) -> None:
    back = loads(dumps(value))
    assert back == value
    assert types(back) == types(value)


def test_a_signed_zero_comes_back() -> None:
    assert math.copysign(1, loads(dumps(-0.0))) == -1
    assert str(loads(dumps(Decimal("1.00")))) == "1.00"


def test_nan_comes_back() -> None:
    assert math.isnan(loads(dumps(math.nan)))
    assert loads(dumps(Decimal("NaN"))).is_nan()


def test_a_named_zone_comes_back_with_its_rules() -> None:
    summer = datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Zurich"))
    assert loads(dumps(summer)).tzinfo is summer.tzinfo


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Pair(1, 2), r"result: a .*\.Pair would"),
        (OrderedDict(a=1), r"result: a collections\.OrderedDict would"),
        (Text("a"), r"result: a .*\.Text would"),
        (bytearray(b"a"), "bytearray"),
        (1j, "complex"),
        (object(), "object"),
        ({"a": [1, object()]}, r"result\['a'\]\[1\]: a builtins\.object would"),
        ({(1, object()): 1}, r"result\.keys\(\)\[1\]"),
        ({"a": iter("ab")}, "str_.*iterator"),
    ],
)
def test_what_would_not_come_back_is_refused(value: Any, text: str) -> None:
    with pytest.raises(ImproperlyUsed, match=text):
        dumps(value)


def test_a_cycle_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ImproperlyUsed, match="cycle"):
        dumps(cycle)


def test_another_codecs_bytes_are_refused() -> None:
    with pytest.raises(ResultUnavailable, match="pickle"):
        loads(b"pickle1:...")


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.timedeltas()
    | st.uuids()
)
hashable = st.recursive(
    plain, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=4
)
values = st.recursive(
    hashable,
    lambda inner: st.lists(inner) | st.dictionaries(hashable, inner) | st.tuples(inner),
    max_leaves=10,
)


@given(values)
def test_any_plain_value_comes_back(value: Any) -> None:
    back = loads(dumps(value))
    assert back == value
    assert types(back) == types(value)

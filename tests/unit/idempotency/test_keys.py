"""Equal values give equal keys, different ones different keys, in every process."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from idempotency import make_key
from idempotency.digests import fingerprint
from idempotency.exceptions import KeyMissing
from idempotency.keys import lock_number


@dataclass
class Point:
    x: int
    y: int


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Hooked:
    def __init__(self, name: str) -> None:
        self.name = name

    def __idempotency_key__(self) -> str:
        return self.name


def key(*args: Any, **kwargs: Any) -> str:
    return make_key("tests", *args, **kwargs)


ZURICH = timezone(timedelta(hours=1))
ID = UUID("0192f0c1-1111-7000-8000-000000000001")

EQUAL = {
    "int and float": (1, 1.0),
    "int and Decimal": (1, Decimal("1.00")),
    "float by its shortest repr": (0.1, Decimal("0.1")),
    "zeros": (0, -0.0),
    "exponents": (Decimal("1E+3"), 1000),
    "long ints": (10**5000, Decimal(10) ** 5000),
    "NFC and NFD": ("\u00e9", "e\u0301"),
    "list and tuple": ([1, 2], (1, 2)),
    "order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "kinds of mapping": ({"a": 1}, OrderedDict(a=1)),
    "order of a set": ({"a", "b", "c"}, frozenset(["c", "a", "b"])),
    "one instant": (datetime(2026, 1, 1, 12, tzinfo=UTC), datetime(2026, 1, 1, 13, tzinfo=ZURICH)),
    "an enum and its value": (Color.RED, "red"),
    "an int enum and its value": (Level.HIGH, 3),
    "a dataclass and its fields": (Point(1, 2), {"x": 1, "y": 2}),
    "what the hook says": (Hooked("a"), "a"),
    "bytes of any kind": (b"a", bytearray(b"a")),
}

DIFFERENT: dict[str, tuple[Any, Any]] = {
    "int and text": (1, "1"),
    "int and bool": (1, True),
    "zero and False": (0, False),
    "None and text": (None, "None"),
    "None and nothing": (None, ""),
    "text and bytes": ("a", b"a"),
    "UUID and text": (ID, str(ID)),
    "near floats": (0.1 + 0.2, 0.3),
    "a date and its midnight": (date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),
    "list and set": ([1], {1}),
    "nesting": ([[1], 2], [[1, 2]]),
    "framing": (["ab", "c"], ["a", "bc"]),
    "spaces": ("a", "a "),
    "case": ("a", "A"),
    "compatibility forms": ("ﬁ", "fi"),
    "an empty list and an empty dict": ([], {}),
    "signs": (1, -1),
    "magnitudes": (1, 10),
    "microseconds": (timedelta(microseconds=1), timedelta(microseconds=2)),
}


@pytest.mark.parametrize(("one", "other"), EQUAL.values(), ids=EQUAL)
def test_equal(one: Any, other: Any) -> None:
    assert key(one) == key(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_different(one: Any, other: Any) -> None:
    assert key(one) != key(other)


def test_namespace_scope_and_parameters_are_framed() -> None:
    keys = [
        make_key("a", "b"),
        make_key("ab", ""),
        make_key("a", "b", scope="s"),
        make_key("as", "b"),
        make_key("a", b="b"),
        make_key("a", {"b": "b"}),
        make_key("a", "b", "c"),
        make_key("a", ["b", "c"]),
    ]
    assert len(set(keys)) == len(keys)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "nan": (float("nan"), ValueError, r"\[0\]\[0\]: nan"),
    "infinity": (Decimal("Infinity"), ValueError, "Infinity"),
    "naive datetime": (datetime(2026, 1, 1), ValueError, "naive"),  # noqa: DTZ001
    "time with a zone": (time(1, tzinfo=UTC), ValueError, "time zone"),
    "lone surrogate": ("\ud800", ValueError, "surrogate"),
    "keys that are not text": ({1: "a"}, TypeError, "must be text"),
    "keys that NFC makes one": ({"\u00e9": 1, "e\u0301": 2}, ValueError, "two keys"),
    "members that NFC makes one": ({"\u00e9", "e\u0301"}, ValueError, "two members"),
    "unknown object": ({"a": [object()]}, TypeError, r"\.a\[0\]: builtins\.object"),
    "generator": (iter("ab"), TypeError, "str_.*iterator"),
    "callable": (len, TypeError, "builtin"),
    "a class": (Point, TypeError, "builtins.type"),
    "unsaved instance": (User(), ValueError, "auth.User is not saved"),
    "unsaved instance with a key": (User(pk=1), ValueError, "auth.User is not saved"),
}


@pytest.mark.parametrize(("value", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        key([value])


def test_a_cycle_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="cycle"):
        key(cycle)


def test_without_a_value_there_is_no_key() -> None:
    with pytest.raises(KeyMissing, match="'tests'"):
        make_key("tests")


@pytest.mark.parametrize(("namespace", "scope"), [(None, ""), ("tests", 7)])
def test_namespace_and_scope_are_text(namespace: Any, scope: Any) -> None:
    with pytest.raises(TypeError, match="namespace and scope that are text, not "):
        make_key(namespace, 1, scope=scope)


def test_an_instance_is_its_label_and_primary_key() -> None:
    class Proxy(User):
        class Meta:
            proxy = True
            app_label = "tests_keys"

    first, second, other, proxy = User(pk=1), User(pk=1), User(pk=2), Proxy(pk=1)
    for user in (first, second, other, proxy):
        user._state.adding = False
    second.username = "someone else's"
    assert key(first) == key(second) == key(proxy)
    assert key(first) != key(other)


def test_a_pydantic_model_is_its_fields() -> None:
    class Charge(BaseModel):
        order_id: int
        amount: int

    assert key(Charge(order_id=1, amount=2)) == key({"order_id": 1, "amount": 2})


def test_the_context_of_decimal_rounds_nothing() -> None:
    with localcontext(prec=2):
        assert key(Decimal("1.2345")) != key(Decimal("1.23"))


# Keys that are in databases: these never change.
GOLDEN = {
    "payment": (
        make_key("payments.charge", order_id=42, amount=Decimal("10.50"), currency="EUR"),
        "idk1:53d856ed42285bd70c169e677bdd43f4dba62b838a5eb6fc70c5fae68f4d9f92",
    ),
    "kinds": (
        make_key(
            "tests",
            [None, True, 1.5, "é", b"\x00", ID],
            {"at": datetime(2026, 1, 1, tzinfo=UTC), "on": date(2026, 1, 1)},
            {1, 2, 3},
            time(1, 2, 3),
            timedelta(days=-1),
            scope="tenant",
        ),
        "idk1:c42c14de83da437df3ff3b5ef33e2aa962364d1c19af633f848ac86be6bd73f7",
    ),
}


@pytest.mark.parametrize(("made", "stored"), GOLDEN.values(), ids=GOLDEN)
def test_golden(made: str, stored: str) -> None:
    assert made == stored


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_other_processes_make_the_same_key(seed: str) -> None:
    """The guide's ``hash()`` gave each worker another key."""
    program = "from idempotency import make_key; print(make_key('t', {'b', 'a', 'c'}, x={'k': 1}))"
    made = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": seed, "DJANGO_SETTINGS_MODULE": "tests.project.settings"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.strip() == make_key("t", {"a", "b", "c"}, x={"k": 1})


numbers = st.integers() | st.decimals(allow_nan=False, allow_infinity=False)


@given(numbers, numbers)
def test_numbers_have_one_key_if_and_only_if_they_are_equal(one: Any, other: Any) -> None:
    assert (key(one) == key(other)) == (one == other)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner),
)


@given(values, values)
def test_values_have_one_key_if_and_only_if_they_are_the_same(one: Any, other: Any) -> None:
    # repr tells 1 from True, which == does not.
    assert (key(one) == key(other)) == (_sorted(one) == _sorted(other))


def _sorted(value: Any) -> str:
    if isinstance(value, dict):
        return repr(sorted((name, _sorted(item)) for name, item in value.items()))
    if isinstance(value, list):
        return f"l{[_sorted(item) for item in value]}"
    return repr(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (datetime(2026, 1, 1), datetime(2026, 1, 2)),  # noqa: DTZ001
        (float("nan"), float("inf")),
        ({1: "a"}, {"1": "a"}),
        ("\ud800", "\ud801"),
    ],
)
def test_a_fingerprint_takes_what_a_key_refuses(one: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(one) != fingerprint(other)


def test_a_fingerprint_refuses_what_it_cannot_tell_apart() -> None:
    with pytest.raises(TypeError, match=r"order: builtins\.object"):
        fingerprint({"order": object()})


def test_lock_numbers_are_signed_64_bit_and_framed() -> None:
    numbers = {lock_number("a", "b", "c"), lock_number("ab", "", "c"), lock_number("a", "bc", "")}
    assert len(numbers) == 3
    assert all(-(2**63) <= number < 2**63 for number in numbers)

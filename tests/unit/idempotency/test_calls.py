"""Calls that mean the same bind to the same arguments; keys name what identifies."""

from __future__ import annotations

from datetime import date
from enum import Enum
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from idempotency.calls import Parameters, key_source, key_text
from idempotency.exceptions import ImproperlyUsed, KeyMissing


def book(order_id: Any, amount: int = 5, *lines: str, note: str = "", **extra: Any) -> None:
    """The signature under test."""


def charge(order_id: Any, amount: int = 5) -> None:
    """A signature without a catch-all."""


def test_equal_calls_bind_equally() -> None:
    parameters = Parameters(charge)
    bound = {"order_id": 1, "amount": 5}
    assert parameters.bind((1,), {}) == bound
    assert parameters.bind((1, 5), {}) == bound
    assert parameters.bind((), {"amount": 5, "order_id": 1}) == bound


def test_var_arguments_are_bound() -> None:
    assert Parameters(book).bind((1, 2, "a", "b"), {"x": 1}) == {
        "order_id": 1,
        "amount": 2,
        "lines": ("a", "b"),
        "note": "",
        "x": 1,
    }


def test_a_keyword_with_the_name_of_a_positional_parameter_is_kept_apart() -> None:
    def function(a: int, /, **extra: int) -> None: ...

    assert Parameters(function).bind((1,), {"a": 2}) == {"a": 1, "**a": 2}


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing a required argument: 'order_id'"),
        ((), {"amount": 1}, "missing a required argument: 'order_id'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"order_id": 1}, "multiple values for argument 'order_id'"),
        ((1,), {"other": 1}, "unexpected keyword argument 'other'"),
    ],
)
def test_a_wrong_call_is_a_type_error(
    args: tuple[Any, ...], kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        Parameters(charge).bind(args, kwargs)


def test_arguments_come_in_the_order_of_the_signature() -> None:
    assert list(Parameters(charge).bind((), {"amount": 5, "order_id": 1})) == ["order_id", "amount"]


class Color(Enum):
    RED = "red"


class Size(str, Enum):  # noqa: UP042  # whose own text is "Size.LARGE"
    LARGE = "large"


@pytest.mark.parametrize(
    ("given", "order_id", "made"),
    [
        ("charge:{order_id}", 7, "charge:7"),
        ("{order_id}/{amount}", "a", "a/5"),
        ("{order_id.pk}", SimpleNamespace(pk=3), "3"),
        ("{order_id[id]}", {"id": 3}, "3"),
        ("{order_id:%Y}", date(2026, 1, 1), "2026"),
        ("{order_id}", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("{order_id}", Color.RED, "red"),
        ("{order_id}", 0, "0"),
        ("nightly", 1, "nightly"),
        (lambda order_id: order_id, 7, "7"),
        (lambda order_id: order_id, Color.RED, "red"),
        (lambda order_id: order_id, Size.LARGE, "large"),
        (lambda amount, order_id: f"{order_id}-{amount}", 7, "7-5"),
        (lambda **arguments: ",".join(arguments), 7, "order_id,amount"),
        (lambda order_id, /: order_id, UUID(int=2), "00000000-0000-0000-0000-000000000002"),
        (lambda order_id, /, **rest: f"{order_id}{sorted(rest)}", 1, "1['amount']"),
    ],
)
def test_a_key_is_made_from_the_arguments(given: Any, order_id: Any, made: str) -> None:
    parameters = Parameters(charge)
    assert key_source(given, parameters, "key")(parameters.bind((order_id,), {})) == made


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("{oder_id}", "'oder_id', which is not an argument .* amount, order_id"),
        ("{}", "fields name arguments"),
        ("{0}", "fields name arguments"),
        ("{order_id", "not a format string"),
        ("{order_id!x}", "not a format string"),
        ("{order_id:{width}}", "'width', which is not an argument"),
        (lambda oder_id: oder_id, "asks for 'oder_id'"),
        (7, "a format string or a callable"),
    ],
)
def test_a_wrong_key_is_found_at_decoration(given: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        key_source(given, Parameters(charge), "key")


@pytest.mark.parametrize(
    ("given", "order_id", "error", "text"),
    [
        ("charge:{order_id}", None, KeyMissing, "order_id is None"),
        ("charge:{order_id}", "", KeyMissing, "order_id is ''"),
        ("", 1, KeyMissing, "came out empty"),
        (lambda order_id: order_id, None, KeyMissing, "came out empty"),
        (lambda order_id: order_id, "", KeyMissing, "came out empty"),
        (lambda order_id: order_id, 1.5, ImproperlyUsed, "is a float"),
        (lambda order_id: order_id, True, ImproperlyUsed, "is a bool"),
        ("{order_id}", object(), ImproperlyUsed, "does not identify it"),
        ("{order_id}", [1], ImproperlyUsed, "is a list"),
    ],
)
def test_a_call_without_a_key_is_refused(
    given: Any, order_id: Any, error: type[Exception], text: str
) -> None:
    parameters = Parameters(charge)
    source = key_source(given, parameters, "key")
    with pytest.raises(error, match=text):
        source(parameters.bind((order_id,), {}))


def test_a_catch_all_may_lack_what_the_key_asks_for() -> None:
    parameters = Parameters(book)
    source = key_source("{tenant}", parameters, "key")
    assert source(parameters.bind((1,), {"tenant": "t"})) == "t"
    with pytest.raises(KeyMissing, match="has no tenant"):
        source(parameters.bind((1,), {}))


def test_key_text_names_its_origin() -> None:
    with pytest.raises(KeyMissing, match="The key for 'x' came out empty"):
        key_text("", "The key for 'x'")

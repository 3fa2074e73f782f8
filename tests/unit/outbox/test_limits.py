"""What a broker does not survive is refused at the enqueue."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Any
from uuid import UUID

import pytest
from celery import current_app, signature
from kombu import Exchange, Queue

from outbox import wire
from outbox.exceptions import UnserializableArgument
from tests.unit.outbox.wires import NAME, build, record


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"x": float("nan")}, "only finite numbers"),
        ({"x": float("-inf")}, "only finite numbers"),
        ({"x": [1, {"y": float("inf")}]}, "only finite numbers"),
        ({"x": Decimal("NaN")}, "only finite numbers"),
        ({"x": 2**63}, "64 bits"),
        ({"x": Decimal(2**31)}, "decimals of 31 bits"),
        ({"x": Decimal("1E+2")}, "decimals of 31 bits"),
        ({"x": Decimal("1E-256")}, "decimals of 31 bits"),
        ({"x": UUID(int=1)}, "of type UUID"),
        ({"x": datetime(2020, 1, 1).date()}, "of type date"),  # noqa: DTZ001
        ({"x": object()}, "of type object"),
        ({"x": "y" * 130_000}, "headers and properties are 130,"),
        ({"x" * 256: 1}, "a name of 256 bytes"),
        ({"x": {"ü" * 128: 1}}, "a name of 256 bytes"),
        ({"x": {"__type__": "datetime", "__value__": "y"}}, "takes for a typed value"),
        ({"x": [{"__type__": "y", "__value__": 1}]}, "takes for a typed value"),
    ],
)
def test_a_header_that_amqp_cannot_carry_is_refused(
    amqp: None, headers: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnserializableArgument, match=problem) as caught:
        build(record.s("x").set(headers=headers))
    assert str(caught.value).startswith(f"{NAME}: header")


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"x": float("nan")}, "only finite numbers"),
        ({"x": object()}, "of type object"),
        ({"x": {"__type__": "y", "__value__": 1}}, "takes for a typed value"),
    ],
)
def test_a_header_that_redis_cannot_carry_is_refused(headers: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnserializableArgument, match=problem):
        build(record.s("x").set(headers=headers))


def test_an_enumeration_in_a_header_is_its_number(amqp: None) -> None:
    message = build(record.s("x").set(headers={"x": HTTPStatus.OK}, priority=HTTPStatus(100)))
    assert wire.json_loads(wire.json_dumps(message.headers))["x"] == 200


def test_redis_carries_what_kombu_encodes() -> None:
    headers = {"id": UUID(int=1), "day": datetime(2020, 1, 1).date(), "price": Decimal("1E+2")}  # noqa: DTZ001
    message = build(record.s("x").set(headers={"x": headers}))
    assert wire.json_loads(wire.json_dumps(message.headers))["x"] == headers


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"priority": 256}, "'priority' is 256"),
        ({"priority": -1}, "'priority' is -1"),
        ({"priority": "3"}, "'priority' is of type str; AMQP has it of int"),
        ({"priority": 3.0}, "'priority' is of type float"),
        ({"timestamp": -1}, "'timestamp' is -1"),
        ({"timestamp": datetime(2020, 1, 1)}, "'timestamp' is of type datetime"),  # noqa: DTZ001
        ({"message_id": 5}, "'message_id' is of type int; AMQP has it of str"),
        ({"reply_to": Queue("replies")}, "'reply_to' is of type Queue"),
        ({"reply_to": "x" * 256}, "256 bytes"),
        ({"correlation_id": 1.5}, "'correlation_id' is of type float"),
        ({"routing_key": "x" * 256, "exchange": "y"}, "'routing key' .* 256 bytes"),
        ({"exchange": "x" * 256, "routing_key": "y"}, "'exchange' .* 256 bytes"),
        ({"queue": "x" * 256}, "256 bytes"),
    ],
)
def test_a_property_that_amqp_cannot_carry_is_refused(
    amqp: None, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnserializableArgument, match=problem):
        build(record.s("x").set(**options))


@pytest.mark.parametrize("options", [{"timestamp": 1_700_000_000}, {"priority": 0}, {"mine": 1000}])
def test_a_property_that_amqp_carries_or_leaves_out_is_taken(
    amqp: None, options: dict[str, Any]
) -> None:
    assert build(record.s("x").set(**options)).properties.items() >= options.items()


@pytest.mark.parametrize("options", [{"priority": "high"}, {"message_id": 5}])
def test_redis_carries_properties_of_any_type(options: dict[str, Any]) -> None:
    assert build(record.s("x").set(**options)).properties.items() >= options.items()


def test_a_tasks_name_that_the_table_cannot_hold_is_refused() -> None:
    with pytest.raises(UnserializableArgument, match="256 bytes"):
        build(signature("x" * 256))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"queue": "a\0b"}, r"'routing key' is 'a\\x00b'"),
        ({"exchange": "a\0b", "routing_key": "y"}, r"'exchange' is 'a\\x00b'"),
        (
            {"exchange": "topical", "routing_key": "\ud800"},
            r"'routing key' is '\\ud800'",
        ),
    ],
)
def test_a_target_that_the_table_cannot_hold_is_refused(
    options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnserializableArgument, match=f"{NAME}.*{problem}; PostgreSQL takes no"):
        build(record.s("x").set(**options))


def test_a_queues_name_that_the_table_cannot_hold_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queues: Any = current_app.amqp.queues
    monkeypatch.setitem(queues, "a\0b", Queue("a\0b", Exchange("x", "topic"), "y"))
    with pytest.raises(UnserializableArgument, match=r"the task's 'queue' is 'a\\x00b'"):
        build(record.s("x").set(queue="a\0b"))


def test_a_tasks_name_has_no_nul() -> None:
    with pytest.raises(UnserializableArgument, match=r"^'a\\x00b': the task's 'name' is 'a\\x00b'"):
        build(signature("a\0b"))

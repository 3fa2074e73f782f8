"""Signature -> what is sent now, and what follows with ids that stay."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery import chain, chord, chunks, group

from outbox import canvas, wire
from outbox.exceptions import UnsupportedSignature
from tests.unit.outbox.wires import NAME, build, embedded, fail, forget_settings, record, wire_args

# In UTC they are in no year that Python and PostgreSQL both have.
NO_MOMENTS = [
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    "9999-12-31T23:59:59-01:00",
]


@pytest.mark.parametrize("expires", NO_MOMENTS)
def test_an_expiry_in_no_year_is_refused(expires: object) -> None:
    with pytest.raises(ValueError, match=f"{NAME}: expires must be .* of the years 1 to 9999"):
        build(record.s("x").set(expires=expires))


def test_an_id_of_ones_own_is_refused() -> None:
    own = str(UUID(int=1))
    for target in (
        record.s("x").set(task_id=own),
        chain(record.si("x").set(task_id=own), record.si("y")),
        chain(record.si("x").set(task_id=own)),
    ):
        with pytest.raises(ValueError, match=f"{NAME}.* its own task_id '{own}'.*Leave task_id"):
            build(target)


def test_a_countdown_is_the_tables_and_not_the_wires() -> None:
    message = build(record.s("x").set(countdown=1.5))
    assert (message.delay, message.eta) == (timedelta(seconds=1.5), None)
    assert message.headers["eta"] is None


@pytest.mark.parametrize(
    ("eta", "moment"),
    [
        (datetime(2031, 2, 3, 4, tzinfo=UTC), datetime(2031, 2, 3, 4, tzinfo=UTC)),
        (datetime(2031, 2, 3, 4), datetime(2031, 2, 3, 4, tzinfo=UTC)),  # noqa: DTZ001
        ("2031-02-03T04:00:00+01:00", datetime(2031, 2, 3, 3, tzinfo=UTC)),
    ],
)
def test_an_eta_is_the_tables_and_not_the_wires(eta: object, moment: datetime) -> None:
    message = build(record.s("x").set(eta=eta))
    assert (message.eta, message.delay) == (moment, None)
    assert message.headers["eta"] is None


@pytest.mark.parametrize(
    "countdown", [float("nan"), float("inf"), Decimal("NaN"), "5", 1e12, -1e12]
)
def test_a_countdown_that_is_no_time_is_refused(countdown: object) -> None:
    with pytest.raises(ValueError, match=f"{NAME}: countdown must be a number of seconds"):
        build(record.s("x").set(countdown=countdown))


@pytest.mark.parametrize("eta", ["soon", 5, object(), *NO_MOMENTS])
def test_an_eta_that_is_no_time_is_refused(eta: object) -> None:
    with pytest.raises(ValueError, match=f"{NAME}: eta must be a datetime"):
        build(record.s("x").set(eta=eta))


def test_a_chain_waits_with_its_first_step() -> None:
    message = build(chain(record.s("x"), record.si("y").set(countdown=5)).set(countdown=2))
    assert message.delay == timedelta(seconds=2)
    assert embedded(message)["chain"][0]["options"]["countdown"] == 5


def a_chord() -> Any:
    return chord([record.si("1"), record.si("2")], record.si("body"))


@pytest.mark.parametrize(
    "target",
    [
        a_chord,
        lambda: group(record.si("1"), record.si("2")) | record.si("body"),
        lambda: record.si("1") | a_chord(),
        lambda: record.si("1") | group(record.si("2"), record.si("3")) | record.si("4"),
        lambda: record.si("1") | group(record.si("2"), a_chord()),
        lambda: record.si("1") | group(record.si("2"), record.si("3") | a_chord()),
        lambda: record.si("1").set(link=a_chord()),
        lambda: record.si("1").set(link_error=a_chord()),
        lambda: record.si("1").set(link=record.si("2").set(link=a_chord())),
        lambda: record.si("1").set(link=chain(record.si("2"), a_chord())),
        lambda: chain(record.si("1"), record.si("2").set(link=a_chord())),
        lambda: chain(record.si("1"), record.si("2")).set(link=a_chord()),
        lambda: record.si("1").set(chain=[a_chord()]),
    ],
)
def test_a_chord_is_refused_wherever_it_is(target: Callable[[], Any]) -> None:
    with pytest.raises(UnsupportedSignature, match=r"is a chord.*Enqueue a task that starts"):
        build(target())
    with pytest.raises(UnsupportedSignature, match="is a chord"):
        [build(member) for member in canvas.members([record.si("0"), target()])]


def test_a_chord_in_a_group_is_refused() -> None:
    with pytest.raises(UnsupportedSignature, match="is a chord"):
        [build(member) for member in canvas.members(group(record.si("0"), a_chord()))]
    with pytest.raises(UnsupportedSignature, match="is a chord"):
        canvas.members(a_chord())


@pytest.mark.parametrize(
    "target",
    [
        lambda: group(record.s("1"), record.s("2")),
        lambda: group(record.s("1")),
        lambda: chain(group(record.s("1"), record.s("2"))),
        lambda: chunks(record.s(), [("1",), ("2",), ("3",)], 2),
    ],
)
def test_a_group_is_not_one_message(target: Callable[[], Any]) -> None:
    with pytest.raises(UnsupportedSignature, match=r"Use OutboxMessage.objects.enqueue_many"):
        build(target())


def test_an_empty_chain_is_refused() -> None:
    with pytest.raises(UnsupportedSignature, match="no task in it"):
        build(chain())


def nested(message: wire.WireMessage) -> list[str]:
    """All ids that the message gives to what follows."""
    found = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            if "task_id" in value:
                found.append(value["task_id"])
            for item in value.values():
                collect(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                collect(item)

    collect(embedded(message))
    return found


FOLLOWED: list[tuple[Callable[[], Any], int]] = [
    (lambda: record.s("x").set(link=record.si("y")), 1),
    (lambda: record.s("x").set(link=[record.si("y"), record.si("z")]), 2),
    (lambda: record.s("x").set(link=dict(record.si("y"))), 1),
    (lambda: record.s("x").set(link_error=record.si("y")), 1),
    (lambda: record.s("x").set(link=record.si("y").set(link=record.si("z"))), 2),
    (lambda: record.s("x").set(link=chain(record.si("y"), record.si("z"))), 2),
    (lambda: record.s("x").set(link=group(record.si("y"), record.si("z"))), 3),
    (lambda: record.s("x").set(link=chain(record.si("y"), group(record.si("z")))), 2),
    (lambda: chain(record.s("x"), record.si("y"), record.si("z")), 2),
    (lambda: chain(record.s("x"), record.si("y").set(link=record.si("z"))), 2),
    (lambda: chain(record.s("x"), record.si("y")).set(link_error=record.si("z")), 3),
    (lambda: record.s("x") | group(record.si("y"), record.si("z").set(link=fail.si("w"))), 4),
]


@pytest.mark.parametrize("number", range(len(FOLLOWED)))
def test_all_that_follows_has_its_id(number: int) -> None:
    make, followers = FOLLOWED[number]
    given = nested(build(make()))
    assert len(given) == len(set(given)) == followers
    assert all(UUID(id) for id in given)


@pytest.mark.parametrize("number", range(len(FOLLOWED)))
def test_the_same_signature_twice_is_two_intents(number: int) -> None:
    make, _ = FOLLOWED[number]
    target = make()
    first, second = build(target), build(target)
    assert not {*nested(first), first.headers["id"]} & {*nested(second), second.headers["id"]}


@pytest.mark.parametrize("number", range(len(FOLLOWED)))
def test_the_callers_signature_is_left_as_it_was(number: int) -> None:
    make, _ = FOLLOWED[number]
    target = make()
    build(target)
    assert target == make()


def test_an_id_that_a_callback_has_already_is_kept() -> None:
    own = str(UUID(int=1))
    assert nested(build(record.s("x").set(link=record.si("y").set(task_id=own)))) == [own]


def test_the_rest_of_an_outer_chain_runs_after_an_inner_one() -> None:
    """As when a task replaces itself by a chain."""
    target: Any = chain(record.si("1"), record.si("2"))
    target.set(chain=[record.si("3")])
    steps = embedded(build(target))["chain"]
    assert [step["args"] for step in steps] == [["3"], ["2"]]  # the next one last


def test_the_members_of_a_group_are_called_as_the_group_would() -> None:
    target = group(record.s("1"), group(record.s("2")), chain(record.s("3"), record.s("4")))
    messages = [build(member) for member in canvas.members(target.set(priority=3))]
    assert [list(wire_args(message)) for message in messages] == [["1"], ["2"], ["3"]]
    groups = {message.headers["group"] for message in messages[:2]}
    assert len(groups) == 1
    assert embedded(messages[2])["chain"][0]["options"]["group_id"] in groups
    assert {message.properties["priority"] for message in messages} == {3}


def test_chunks_are_a_group() -> None:
    target: Any = chunks(record.s(), [("1",), ("2",), ("3",)], 2)
    assert len([build(member) for member in canvas.members(target)]) == 2


def test_an_empty_group_has_no_members() -> None:
    assert canvas.members(group()) == []
    assert canvas.members([]) == []


def test_one_signature_is_not_many() -> None:
    for target in (record.s("x"), chain(record.s("x"), record.s("y"))):
        with pytest.raises(TypeError, match="is one signature: give a list"):
            canvas.members(target)


def test_callbacks_of_a_group_are_refused_as_celery_does() -> None:
    with pytest.raises(UnsupportedSignature, match="takes no callbacks of a group"):
        canvas.members(group(record.s("1")).set(link=record.s("2")))


def test_protocol_1_holds_what_follows_as_callbacks(app_conf: Any) -> None:
    app_conf.task_protocol = 1
    forget_settings()
    target: Any = record.s("x") | record.si("y") | group(record.si("z"), record.si("w"))
    message = build(target)
    (second,) = embedded(message)["callbacks"]
    (third,) = second["options"]["link"]
    assert second["args"] == ["y"]
    assert [task["args"] for task in third["kwargs"]["tasks"]] == [["z"], ["w"]]

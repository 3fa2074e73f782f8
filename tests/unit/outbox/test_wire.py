"""Signature -> wire message: what is refused, and what is kept."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from celery import chain, chord, chunks, current_app, group, signature
from celery.signals import after_task_publish, before_task_publish
from kombu import Exchange, Queue
from kombu.exceptions import ContentDisallowed

from outbox import canvas, ids, wire
from outbox.exceptions import UnserializableArgument, UnsupportedSignature
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Their type knows fewer options than Celery does.
record: Any = tasks.record
fail: Any = tasks.fail
NAME = "tests.project.tasks.record"


def build(target: Any) -> wire.WireMessage:
    return wire.build(target, ids.id_for(target))


def embedded(message: wire.WireMessage) -> Any:
    return wire.decode(
        message.body, message.headers, message.properties, [message.properties["content_type"]]
    )[2]


@pytest.fixture
def amqp(settings: Any) -> Iterator[None]:
    """The rules of AMQP: a URL that nobody connects to."""
    before = os.environ.get("CELERY_BROKER_URL")
    os.environ["CELERY_BROKER_URL"] = "amqp://guest@127.0.0.1:1//"
    app: Any = current_app
    app._after_fork()
    try:
        yield
    finally:
        os.environ.pop("CELERY_BROKER_URL")
        if before is not None:
            os.environ["CELERY_BROKER_URL"] = before
        app._after_fork()


@pytest.fixture
def app_conf() -> Iterator[Any]:
    """The app's settings, which may be changed: they are as before afterwards."""
    conf: Any = current_app.conf
    names = ("task_always_eager", "task_send_sent_event", "task_protocol", "result_backend")
    before = {name: conf[name] for name in names}
    try:
        yield conf
    finally:
        conf.update(before)
        forget_settings()


def forget_settings() -> None:
    for name in ("send_task_message", "create_task_message"):
        vars(current_app.amqp).pop(name, None)
    app: Any = current_app
    app._local.__dict__.pop("backend", None)
    app._backend_cache = None


# The id


def test_the_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    before = time.time_ns() // 1_000_000
    id = ids.message_id()
    after = time.time_ns() // 1_000_000
    assert id.version == 7
    assert id.variant == "specified in RFC 4122"
    assert before <= id.int >> 80 <= after


def test_ids_differ_in_and_after_a_fork() -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write_end, ids.message_id().bytes)
        os._exit(0)
    os.waitpid(pid, 0)
    made = {ids.message_id() for _ in range(1000)} | {UUID(bytes=os.read(read_end, 16))}
    os.close(read_end)
    os.close(write_end)
    assert len(made) == 1001


def test_the_id_is_the_tasks_and_the_messages() -> None:
    id = ids.message_id()
    message = wire.build(record.s("x"), id)
    assert message.headers["id"] == message.headers["root_id"] == str(id)
    assert message.properties["correlation_id"] == str(id)


def test_an_id_of_ones_own_is_refused() -> None:
    own = str(UUID(int=1))
    for target in (
        record.s("x").set(task_id=own),
        chain(record.si("x").set(task_id=own), record.si("y")),
        chain(record.si("x").set(task_id=own)),
    ):
        with pytest.raises(ValueError, match=f"{NAME}.* its own task_id '{own}'.*Leave task_id"):
            build(target)


def test_only_a_signature_is_taken() -> None:
    for other in (record, "x", None, record.s("x").__dict__):
        with pytest.raises(TypeError, match="Enqueue a signature"):
            build(other)


# When


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


@pytest.mark.parametrize("eta", ["soon", 5, object()])
def test_an_eta_that_is_no_time_is_refused(eta: object) -> None:
    with pytest.raises(ValueError, match=f"{NAME}: eta must be a datetime"):
        build(record.s("x").set(eta=eta))


def test_a_chain_waits_with_its_first_step() -> None:
    message = build(chain(record.s("x"), record.si("y").set(countdown=5)).set(countdown=2))
    assert message.delay == timedelta(seconds=2)
    assert embedded(message)["chain"][0]["options"]["countdown"] == 5


@pytest.mark.parametrize("option", ["expires", "expiration"])
def test_what_expires_in_seconds_expires_at_a_moment(option: str) -> None:
    before = datetime.now(UTC)
    message = build(record.s("x").set(**{option: 60}))
    assert message.expires_at is not None
    assert (
        timedelta(0) <= message.expires_at - before - timedelta(seconds=60) < timedelta(seconds=5)
    )
    # The time to live counts from the publish: the relay makes it.
    assert "expiration" not in message.properties


def test_a_message_of_protocol_1_expires_too(app_conf: Any) -> None:
    app_conf.task_protocol = 1
    forget_settings()
    message = build(record.s("x").set(expires=60))
    assert message.expires_at is not None
    assert message.headers == {}
    assert "expiration" not in message.properties


@pytest.mark.parametrize("expires", [float("nan"), float("inf"), "soon"])
def test_an_expiry_that_is_no_time_is_refused(expires: object) -> None:
    with pytest.raises((ValueError, OverflowError)):
        build(record.s("x").set(expires=expires))


# What cannot be serialized


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (lambda: record.s(object()), f"{NAME}: argument 1 "),
        (lambda: record.s("x", lock=object()), f"{NAME}: argument 'lock' "),
        (lambda: record.s("x", {"deep": [object()]}), f"{NAME}: argument 2 "),
        (lambda: record.s({1, 2}), f"{NAME}: argument 1 "),
        (lambda: record.s("x").set(link=fail.s(object())), "tests.project.tasks.fail: argument 1 "),
        (
            lambda: fail.s("x").set(link_error=record.s(label=object())),
            f"{NAME}: argument 'label' ",
        ),
        (
            lambda: chain(record.s("x"), fail.si(lambda: None)),
            "tests.project.tasks.fail: argument 1 ",
        ),
        (
            lambda: record.s("x").set(link=chain(record.si("y"), fail.si(object()))),
            "tests.project.tasks.fail: argument 1 ",
        ),
    ],
)
def test_an_unserializable_argument_is_named(target: Callable[[], Any], named: str) -> None:
    with pytest.raises(UnserializableArgument) as caught:
        build(target())
    assert str(caught.value).startswith(named)
    assert "cannot be serialized" in str(caught.value)


def test_what_the_chosen_serializer_takes_is_taken() -> None:
    message = build(record.s({1, 2}).set(serializer="pickle"))
    args, _, _ = wire.decode(
        message.body, message.headers, message.properties, ["application/x-python-serialize"]
    )
    assert list(args) == [{1, 2}]


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
        ({"priority": "high"}, None),
        ({"reply_to": Queue("replies")}, "'reply_to' is of type Queue"),
        ({"reply_to": "x" * 256}, "256 bytes"),
        ({"correlation_id": 1.5}, "'correlation_id' is of type float"),
        ({"routing_key": "x" * 256, "exchange": "y"}, "'routing key' .* 256 bytes"),
        ({"exchange": "x" * 256, "routing_key": "y"}, "'exchange' .* 256 bytes"),
        ({"queue": "x" * 256}, "256 bytes"),
    ],
)
def test_a_property_that_amqp_cannot_carry_is_refused(
    amqp: None, options: dict[str, Any], problem: str | None
) -> None:
    if problem is None:
        build(record.s("x").set(**options))  # nothing is lost: text goes out as text
        return
    with pytest.raises(UnserializableArgument, match=problem):
        build(record.s("x").set(**options))


def test_a_tasks_name_that_the_table_cannot_hold_is_refused() -> None:
    with pytest.raises(UnserializableArgument, match="256 bytes"):
        build(signature("x" * 256))


def test_wrong_arguments_are_refused_as_celery_does() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        build(record.s())


# What is not one message


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


def test_a_task_that_publishes_twice_is_refused() -> None:
    class Twice(current_app.Task):  # type: ignore[name-defined, misc]
        name = "twice"

        def apply_async(self, *args: Any, **options: Any) -> Any:
            super().apply_async(*args, **options)
            return super().apply_async(*args, **options)

    app: Any = current_app
    twice = app.register_task(Twice())
    try:
        with pytest.raises(UnsupportedSignature, match="several messages"):
            build(twice.s("x"))
    finally:
        app.tasks.unregister(twice)


@pytest.mark.parametrize(
    ("queue", "problem"),
    [
        (Queue("unheard of"), "is not in task_queues"),
        (Queue("unheard of", Exchange("elsewhere"), "x"), "is not in task_queues"),
        (Queue("unheard of", Exchange("unheard of", type="topic"), "x.#"), "is not in task_queues"),
        (
            Queue("unheard of", Exchange("unheard of"), "unheard of", max_length=3),
            "is not in task_queues",
        ),
        (Queue("celery", Exchange("elsewhere"), "x"), "differs from the one in task_queues"),
        (Queue("celery", Exchange("celery"), "celery", max_length=3), "differs from the one"),
    ],
)
def test_a_queue_that_the_relay_could_not_declare_is_refused(queue: Queue, problem: str) -> None:
    with pytest.raises(UnsupportedSignature, match=problem):
        build(record.s("x").set(queue=queue))


def test_a_queue_as_the_settings_have_it_is_taken() -> None:
    for queue in (current_app.amqp.queues["topical"], current_app.amqp.queues["celery"]):
        assert build(record.s("x").set(queue=queue)).queue == queue.name
    assert build(record.s("x").set(queue="made at need")).queue == "made at need"


def test_no_option_makes_the_call_publish() -> None:
    with current_app.connection_for_write() as connection:
        message = build(
            record.s("x").set(
                connection=connection, producer=current_app.amqp.Producer(connection), queue="spied"
            )
        )
        channel: Any = connection.default_channel
        channel.queue_declare("spied")
        assert channel.basic_get("spied") is None
    assert message.queue == "spied"


# What follows


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


# Groups


def test_the_members_of_a_group_are_called_as_the_group_would() -> None:
    target = group(record.s("1"), group(record.s("2")), chain(record.s("3"), record.s("4")))
    messages = [build(member) for member in canvas.members(target.set(priority=3))]
    assert [list(wire_args(message)) for message in messages] == [["1"], ["2"], ["3"]]
    groups = {message.headers["group"] for message in messages[:2]}
    assert len(groups) == 1
    assert embedded(messages[2])["chain"][0]["options"]["group_id"] in groups
    assert {message.properties["priority"] for message in messages} == {3}


def wire_args(message: wire.WireMessage) -> Any:
    return wire.decode(message.body, message.headers, message.properties, ["application/json"])[0]


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


# Around it


def test_signals_fire_once_and_together() -> None:
    fired: list[tuple[str, Any]] = []

    def before(**kwargs: Any) -> None:
        kwargs["headers"]["traced"] = "yes"
        fired.append(("before", kwargs["headers"]["id"]))

    def after(**kwargs: Any) -> None:
        fired.append(("after", kwargs["headers"]["id"]))

    before_task_publish.connect(before)
    after_task_publish.connect(after)
    try:
        message = build(record.s("x"))
    finally:
        before_task_publish.disconnect(before)
        after_task_publish.disconnect(after)
    assert fired == [("before", message.headers["id"]), ("after", message.headers["id"])]
    assert message.headers["traced"] == "yes"


def test_a_sent_event_is_not_the_message(app_conf: Any) -> None:
    app_conf.task_send_sent_event = True
    forget_settings()
    message = build(record.s("x"))
    assert (message.task, message.queue) == (NAME, "celery")
    assert list(wire_args(message)) == ["x"]


def test_eager_mode_changes_nothing(app_conf: Any) -> None:
    options = {
        "priority": 3,
        "expires": 60,
        "queue": "topical",
        "shadow": "x",
        "headers": {"a": "b"},
    }
    target = record.s("x").set(link=record.si("y"), **options)
    plain = build(target)
    app_conf.task_always_eager = True
    eager = build(target)
    own = {"id", "root_id", "expires", "correlation_id"}
    for name in ("headers", "properties"):
        left, right = getattr(plain, name), getattr(eager, name)
        assert {n: v for n, v in left.items() if n not in own} == {
            n: v for n, v in right.items() if n not in own
        }
    assert (plain.exchange, plain.routing_key, plain.queue) == (
        eager.exchange,
        eager.routing_key,
        eager.queue,
    )


@pytest.mark.parametrize(
    "target",
    [
        lambda: record.s("x"),
        lambda: record.s("x").set(link=group(record.si("y"), record.si("z"))),
        lambda: record.s("x") | group(record.si("y"), record.si("z")),
        lambda: chain(record.s("x"), record.si("y")),
    ],
)
def test_a_dead_result_backend_is_not_asked(target: Callable[[], Any], app_conf: Any) -> None:
    app_conf.result_backend = "redis://127.0.0.1:1/0"
    forget_settings()
    assert "redis" in type(current_app.backend).__module__
    began = time.monotonic()
    build(target())
    assert time.monotonic() - began < 5  # the backend would try again for 20 seconds


def test_a_body_is_decoded_only_with_what_is_accepted() -> None:
    message = build(record.s("x").set(serializer="pickle", compression="zlib"))
    with pytest.raises(ContentDisallowed):
        wire.decode(message.body, message.headers, message.properties, ["application/json"])
    args, kwargs, _ = wire.decode(
        message.body, message.headers, message.properties, ["application/x-python-serialize"]
    )
    assert (list(args), kwargs) == (["x"], {})


def test_protocol_1_holds_what_follows_as_callbacks(app_conf: Any) -> None:
    app_conf.task_protocol = 1
    forget_settings()
    target: Any = record.s("x") | record.si("y") | group(record.si("z"), record.si("w"))
    message = build(target)
    (second,) = embedded(message)["callbacks"]
    (third,) = second["options"]["link"]
    assert second["args"] == ["y"]
    assert [task["args"] for task in third["kwargs"]["tasks"]] == [["z"], ["w"]]


def test_a_body_of_protocol_1_is_decoded(app_conf: Any) -> None:
    app_conf.task_protocol = 1
    forget_settings()
    message = build(record.s("x", lock=None).set(link=record.si("y")))
    args, kwargs, rest = wire.decode(
        message.body, message.headers, message.properties, ["application/json"]
    )
    assert (list(args), kwargs) == (["x"], {"lock": None})
    assert rest["callbacks"][0]["args"] == ["y"]

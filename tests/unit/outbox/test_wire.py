"""Signature -> wire message: what Celery would send, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import chain, current_app, group
from celery._state import task_join_will_block  # type: ignore[attr-defined]
from celery.signals import after_task_publish, before_task_publish
from kombu import Exchange, Queue
from kombu.exceptions import ContentDisallowed

from outbox import wire
from outbox.exceptions import UnserializableArgument, UnsupportedSignature
from outbox.ids import message_id
from tests.unit.outbox.wires import NAME, build, fail, forget_settings, record, wire_args


def test_the_id_is_the_tasks_and_the_messages() -> None:
    id = message_id()
    message = wire.build(record.s("x"), id)
    assert message.headers["id"] == message.headers["root_id"] == str(id)
    assert message.properties["correlation_id"] == str(id)


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


@pytest.mark.parametrize("name", ["id", "task"])
def test_a_header_that_would_make_it_another_message_is_refused(name: str) -> None:
    """Celery puts the caller's headers over its own: the worker would see another id or task."""
    with pytest.raises(ValueError, match=f"{NAME}: .* header '{name}' of its own.*another name"):
        build(record.s("x").set(headers={name: "42"}))


@pytest.mark.parametrize("expires", [float("nan"), float("inf"), "soon", 1e12, timedelta(hours=1)])
def test_an_expiry_that_is_no_time_is_refused(expires: object) -> None:
    with pytest.raises(ValueError, match=f"{NAME}: expires must be a number of seconds"):
        build(record.s("x").set(expires=expires))


@pytest.mark.parametrize("expires", [0, -1.5, "2026-03-05T14:30:00Z", datetime(2026, 3, 5, 14)])  # noqa: DTZ001
def test_an_expiry_may_be_what_celery_takes(expires: object) -> None:
    assert build(record.s("x").set(expires=expires)).expires_at is not None


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


def test_wrong_arguments_are_refused_as_celery_does() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        build(record.s())


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


def test_other_threads_may_wait_for_results_meanwhile() -> None:
    """Celery's switch that forbids it is one for the whole process."""
    blocked: list[bool] = []

    def look(**kwargs: Any) -> None:
        blocked.append(task_join_will_block())

    before_task_publish.connect(look)
    try:
        build(chain(record.s("x"), group(record.si("y"), record.si("z"))))
    finally:
        before_task_publish.disconnect(look)
    assert blocked == [False]


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


def test_a_body_of_protocol_1_is_decoded(app_conf: Any) -> None:
    app_conf.task_protocol = 1
    forget_settings()
    message = build(record.s("x", lock=None).set(link=record.si("y")))
    args, kwargs, rest = wire.decode(
        message.body, message.headers, message.properties, ["application/json"]
    )
    assert (list(args), kwargs) == (["x"], {"lock": None})
    assert rest["callbacks"][0]["args"] == ["y"]

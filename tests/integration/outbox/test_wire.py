"""A message arrives at the worker as it would have without the outbox.

Each signature goes to a real worker twice, by plain ``apply_async`` and by ``enqueue`` and a relay,
and the worker writes down all that it knows of both.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from celery import chain, group, signature
from celery.canvas import StampingVisitor  # type: ignore[attr-defined]
from django.db import transaction
from django.db.models.functions import Now
from kombu import Exchange, Queue

from outbox.models import OutboxMessage
from outbox.relay import RelayResult
from tests.helpers import wait_for
from tests.integration.outbox.dumps import SERIALIZERS, comparable
from tests.project import tasks

if TYPE_CHECKING:
    from celery.canvas import Signature

    from outbox.relay import Relay
    from sample_project.processes import Process
    from tests.integration.outbox.dumps import Dumps, Seen

pytestmark = pytest.mark.django_db

# Their type knows fewer options than Celery does.
show: Any = tasks.show
show_and_fail: Any = tasks.show_and_fail
show_at_retry: Any = tasks.show_at_retry
show_child: Any = tasks.show_child
show_child_relayed: Any = tasks.show_child_relayed
Case = tuple[Callable[[], Any], int]


AWARE = datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=timezone(timedelta(hours=-5)))
NAIVE = datetime(2031, 2, 3, 4, 5, 6)  # noqa: DTZ001 (Celery takes it)
PAST = datetime(2021, 2, 3, tzinfo=UTC)
VALUES = {
    "moments": [AWARE, NAIVE, date(2031, 2, 3), time(4, 5, 6)],
    "numbers": [0, -1, 2**70, 1.5, -0.0, True, None, Decimal("10.50"), Decimal("1E-30")],
    "texts": ["", "nul\0", "é \U0001f41f", "quote'\"", UUID(int=7), b"text", b"\xff\x00"],
    "nested": [[], {}, (1, (2, [3, {"four": (5,)}]))],
}


class Stamping(StampingVisitor):  # type: ignore[misc]
    """Stamps each signature with its task's name."""

    def on_signature(self, sig: Signature[Any], **headers: object) -> dict[str, Any]:
        return {"named": sig.task, "stamped_headers": ["named"]}


def stamped(target: Any, **stamps: object) -> Any:
    target.stamp(**stamps)
    return target


def chained() -> Any:
    return chain(show.s("1"), show.s("2"), show.si("3"))


def serialized_with(name: str) -> Any:
    return show.s([1, "é"], key=None).set(serializer=name)


# name: (the signature, how many tasks run in the end)
CASES: dict[str, Case] = {
    "no arguments": (show.s, 1),
    "values in args": (lambda: show.s(*VALUES.values()), 1),
    "values in kwargs": (lambda: show.s(**VALUES), 1),
    "lone surrogate": (lambda: show.s("\ud800"), 1),
    "large arguments": (lambda: show.s("x" * 300_000), 1),
    "by name": (lambda: signature("tests.project.tasks.show", args=["named"]), 1),
    "queue": (lambda: show.s().set(queue="celery"), 1),
    "queue of no settings": (lambda: show.s().set(queue="unknown"), 1),
    "queue as an object": (
        lambda: show.s().set(queue=Queue("topical", Exchange("topical", type="topic"), "topic.#")),
        1,
    ),
    "routing key": (lambda: show.s().set(queue="topical", routing_key="topic.a.b"), 1),
    "priority": (lambda: show.s().set(queue="ranked", priority=7), 1),
    "priority zero": (lambda: show.s().set(queue="ranked", priority=0), 1),
    "no priority": (lambda: show.s().set(priority=None), 1),
    "compression": (lambda: show.s("x" * 5000).set(compression="zlib"), 1),
    "other compression": (lambda: show.s("x" * 5000).set(compression="bzip2"), 1),
    "transient": (lambda: show.s().set(delivery_mode=1), 1),
    "transient by name": (lambda: show.s().set(delivery_mode="transient"), 1),
    "reply_to": (lambda: show.s().set(reply_to="replies"), 1),
    "correlation_id": (lambda: show.s().set(correlation_id="elsewhere"), 1),
    "property": (lambda: show.s().set(app_id="shop", type="order"), 1),
    "text headers": (lambda: show.s().set(headers={"traceparent": "00-ab-cd-01", "é": "ü"}), 1),
    "header values": (
        lambda: show.s().set(
            headers={
                "number": 1,
                "large": 2**40,
                "float": 0.1,
                "bool": False,
                "none": None,
                "list": [1, "a", [2]],
                "dict": {"a": {"b": [None]}},
                "bytes": b"\xff",
                "moment": AWARE,
                "decimal": Decimal("1.25"),
            }
        ),
        1,
    ),
    "header with a surrogate": (lambda: show.s().set(headers={"x": "\ud800"}), 1),
    "shadow": (lambda: show.s().set(shadow="shadowed"), 1),
    "time limits": (lambda: show.s().set(time_limit=60, soft_time_limit=50.5), 1),
    "ignored result": (lambda: show.s().set(ignore_result=True), 1),
    "kept result": (lambda: show.s().set(ignore_result=False), 1),
    "lineage": (lambda: show.s().set(root_id=str(UUID(int=1)), parent_id=str(UUID(int=2))), 1),
    "expires at": (lambda: show.s().set(expires=AWARE), 1),
    "expires at, naive": (lambda: show.s().set(expires=NAIVE), 1),
    "expires at, text": (lambda: show.s().set(expires=AWARE.isoformat()), 1),
    "retried": (lambda: show_at_retry.s(AWARE), 1),
    "retried, with all options": (
        lambda: show_at_retry.s().set(
            headers={"user": "x"}, queue="ranked", priority=3, expires=AWARE, shadow="s"
        ),
        1,
    ),
    "retried, with a link": (lambda: show_at_retry.s().set(link=show.si("link")), 2),
    "stamps": (lambda: stamped(show.s(), foo="bar", many=[1, 2]), 1),
    "stamps by a visitor": (lambda: stamped(show.s(), visitor=Stamping()), 1),
    "stamps of a chain": (lambda: stamped(chained(), visitor=Stamping(), foo="bar"), 3),
    "stamps of callbacks": (
        lambda: stamped(show.s().set(link=show.si("link")), visitor=Stamping()),
        2,
    ),
    "link": (lambda: show.s().set(link=show.s("link")), 2),
    "links": (lambda: show.s().set(link=[show.s("link 1"), show.si("link 2")]), 3),
    "link with options": (
        lambda: show.s().set(
            link=show.s("link").set(queue="ranked", priority=4, headers={"x": 1}, eta=PAST)
        ),
        2,
    ),
    "link of a link": (
        lambda: show.s().set(link=show.s("link").set(link=show.s("link of link"))),
        3,
    ),
    "link to a chain": (lambda: show.s().set(link=chained()), 4),
    "link to a group": (lambda: show.s().set(link=group(show.s("1"), show.s("2"))), 3),
    "links to a group and a chain": (
        lambda: show.s().set(link=[group(show.si("1"), show.si("2")), chained()]),
        6,
    ),
    "link_error": (lambda: show_and_fail.s().set(link_error=show.s("error")), 2),
    "link_errors": (
        lambda: show_and_fail.s().set(link_error=[show.s("error"), show.si("immutable")]),
        3,
    ),
    "chain": (chained, 3),
    "chain with options": (
        lambda: chained().set(
            queue="ranked", priority=2, headers={"x": 1}, shadow="chain", time_limit=30
        ),
        3,
    ),
    "chain with options of steps": (
        lambda: chain(
            show.s("1").set(queue="ranked", headers={"step": 1}),
            show.s("2").set(priority=5, compression="zlib"),
            show.s("3").set(eta=PAST, queue="topical"),
        ),
        3,
    ),
    "chain with links": (
        lambda: chain(show.s("1").set(link=show.si("of 1")), show.s("2")).set(link=show.si("all")),
        4,
    ),
    "chain that fails": (
        lambda: chain(show.s("1"), show_and_fail.s("2"), show.s("3")).set(
            link_error=show.si("error")
        ),
        3,
    ),
    "chain of one": (lambda: chain(show.s("only")), 1),
    "chain of chains": (lambda: chain(chained(), show.s("4"), chain(show.s("5"))), 5),
    "chain to a group": (lambda: show.s("1") | group(show.s("2"), show.si("3")), 3),
    "chain to a group of chains": (lambda: show.s("1") | group(chained(), show.si("4")), 5),
    "group": (lambda: group(show.s("1"), show.s("2", k="v"), show.si("3")), 3),
    "group of a generator": (lambda: group(show.s(str(number)) for number in range(3)), 3),
    "group with options": (
        lambda: group(show.s("1").set(queue="ranked"), show.s("2")).set(
            priority=3, headers={"x": "1"}
        ),
        2,
    ),
    "group of chains": (lambda: group(chained(), show.s("4") | show.s("5")), 5),
    "group in a group": (lambda: group(show.s("1"), group(show.s("2"), show.s("3"))), 3),
    "group with stamps": (
        lambda: stamped(group(show.s("1"), show.s("2")), visitor=Stamping(), foo="bar"),
        2,
    ),
    "pickled values": (lambda: show.s({1, 2}, (3,), VALUES).set(serializer="pickle"), 1),
}
CASES.update(
    {
        f"serializer {name}": (
            partial(serialized_with, name),
            1,
        )
        for name, module in SERIALIZERS.items()
        if find_spec(module)
    }
)


# In Redis plain Celery itself loses these, unless the process has declared the exchange before.
CASES_ON_AMQP: dict[str, Case] = {
    "exchange": (lambda: show.s().set(exchange="topical", routing_key="topic.c"), 1),
    "exchange as an object": (
        lambda: show.s().set(exchange=Exchange("topical", type="topic"), routing_key="topic.c"),
        1,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_worker_sees_what_it_would_have_seen_without_the_outbox(
    case: str, relay: Relay, shared_worker: Process, dumps: Dumps
) -> None:
    build, number = CASES[case]
    compare(build, number, relay, shared_worker, dumps)


@pytest.mark.parametrize("shared_broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("case", CASES_ON_AMQP)
def test_a_message_for_an_exchange_arrives_as_it_would_have_without_the_outbox(
    case: str, relay: Relay, shared_worker: Process, dumps: Dumps
) -> None:
    build, number = CASES_ON_AMQP[case]
    compare(build, number, relay, shared_worker, dumps)


REDELIVERED = [
    "link",
    "links",
    "link of a link",
    "link to a chain",
    "link to a group",
    "links to a group and a chain",
    "link_error",
    "link_errors",
    "chain",
    "chain with links",
    "chain that fails",
    "chain to a group of chains",
    "retried, with a link",
]


@pytest.mark.parametrize("case", REDELIVERED)
def test_what_follows_keeps_its_ids_when_a_message_is_published_again(
    case: str, relay: Relay, shared_worker: Process, dumps: Dumps
) -> None:
    build, number = CASES[case]
    (message,) = enqueue(build())
    assert relay.run_once() == RelayResult(published=1)
    first = dumps.wait(number, shared_worker)
    # What a relay leaves behind that is killed between the broker's confirm and its own commit.
    OutboxMessage.objects.filter(pk=message.pk).update(
        status="pending", available_at=Now(), published_at=None
    )
    assert relay.run_once() == RelayResult(published=1)
    second = dumps.wait(number, shared_worker)
    assert len(ids(first)) == number
    assert ids(first) == ids(second)


def ids(seen: list[Seen]) -> set[str]:
    return {request["id"] for request in seen}


def test_the_table_waits_and_not_the_worker(
    relay: Relay, shared_worker: Process, dumps: Dumps
) -> None:
    (message,) = enqueue(show.s().set(countdown=0.2))
    assert relay.run_once() == RelayResult()
    wait_for(OutboxMessage.objects.due().exists)
    assert relay.run_once() == RelayResult(published=1)
    (seen,) = dumps.wait(1, shared_worker)
    assert seen["eta"] == "None"
    assert seen["id"] == repr(str(message.pk))


def test_the_relay_says_when_it_published(
    relay: Relay, shared_worker: Process, dumps: Dumps
) -> None:
    before = datetime.now(UTC)
    enqueue(show.s())
    relay.run_once()
    (seen,) = dumps.wait(1, shared_worker)
    told = datetime.fromisoformat(ast.literal_eval(seen["published_at"]))
    assert told.tzinfo is not None
    assert before <= told <= datetime.now(UTC)


def test_a_message_from_within_a_task_knows_its_parent(
    relay: Relay, shared_worker: Process, dumps: Dumps, transactional_db: None
) -> None:
    show_child.delay()
    plain = dumps.wait(2, shared_worker)
    show_child_relayed.delay()
    wait_for(OutboxMessage.objects.exists)
    relay.run_once()
    seen = dumps.wait(2, shared_worker)
    assert_alike(seen[:1], plain[:1])
    assert [seen[0][name] for name in ("parent_id", "root_id")] == [seen[1]["id"]] * 2


def compare(
    build: Callable[[], Any], number: int, relay: Relay, worker: Process, dumps: Dumps
) -> None:
    """Send the signature both ways; ``number`` tasks run in the end."""
    build().apply_async()
    plain = dumps.wait(number, worker)
    messages = enqueue(build())
    assert relay.run_once() == RelayResult(published=len(messages))
    assert_alike(dumps.wait(number, worker), plain)


def assert_alike(seen: list[Seen], wanted: list[Seen]) -> None:
    for one, other in zip(comparable(seen), comparable(wanted), strict=True):
        differences = {
            name: (one.get(name), other.get(name))
            for name in one.keys() | other.keys()
            if one.get(name) != other.get(name)
        }
        assert differences == {}


def enqueue(target: Any) -> list[OutboxMessage]:
    with transaction.atomic():
        if isinstance(target, group):
            return OutboxMessage.objects.enqueue_many(target)
        return [OutboxMessage.objects.enqueue(target)]

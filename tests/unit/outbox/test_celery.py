"""OutboxTask outside a worker: what goes through the outbox, and what is Celery's own.

tests/integration has retries, chains and callbacks in real workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, chain, chord, current_app, group, shared_task
from celery.beat import ScheduleEntry, Scheduler
from celery.result import AsyncResult
from celery.schedules import schedule
from django.db import connection, transaction

from outbox.celery import OutboxTask
from outbox.exceptions import UnserializableArgument, UnsupportedSignature
from outbox.models import OutboxMessage
from outbox.testing import assert_enqueued, drain_outbox
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.outbox.conftest import MemoryBroker

pytestmark = pytest.mark.django_db(databases=["default", "other"])
messages = OutboxMessage.objects
ran: list[Any] = []


@shared_task(name="tests.relayed", base=OutboxTask)
def _relayed(*args: Any) -> str:
    ran.append(args)
    return "done"


@shared_task(name="tests.calls_relayed", base=OutboxTask)
def _calls_relayed() -> None:
    relayed.delay("from a task")


relayed: Any = _relayed
calls_relayed: Any = _calls_relayed


@pytest.fixture(autouse=True)
def nothing_ran(memory_broker: MemoryBroker) -> None:
    ran.clear()


@pytest.fixture
def eager() -> Iterator[None]:
    conf: Any = current_app.conf
    conf.task_always_eager = True
    try:
        yield
    finally:
        conf.task_always_eager = False


def ids() -> set[str]:
    return {str(pk) for pk in messages.values_list("pk", flat=True)}


# Calls


@pytest.mark.parametrize(
    "call",
    [
        lambda: relayed.delay("x"),
        lambda: relayed.apply_async(("x",)),
        lambda: relayed.apply_async(args=["x"], countdown=5, queue="ranked"),
        relayed.s("x").delay,
        lambda: relayed.s("x").apply_async(countdown=5),
        lambda: relayed.apply_async(("x",), link=relayed.si("y")),
    ],
)
def test_a_call_writes_a_message(call: Any, memory_broker: MemoryBroker) -> None:
    with transaction.atomic():
        result = call()
    assert isinstance(result, AsyncResult)
    assert ids() == {result.id}
    assert memory_broker.queue() == []
    assert ran == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: relayed.delay_on_commit("x"),
        lambda: relayed.apply_async_on_commit(("x",), queue="celery"),
    ],
)
@pytest.mark.parametrize("commits", [True, False])
def test_a_call_for_the_commit_is_written_before_it(
    commits: bool, call: Any, memory_broker: MemoryBroker
) -> None:
    with transaction.atomic():
        assert call() is None
        assert_enqueued(relayed, args=["x"])
        transaction.set_rollback(not commits)
    assert messages.count() == commits
    assert memory_broker.queue() == []


@pytest.mark.django_db(transaction=True)
def test_a_call_opens_a_transaction_where_there_is_none() -> None:
    result = relayed.delay("x")
    assert ids() == {result.id}
    assert not connection.in_atomic_block


@pytest.mark.django_db(transaction=True)
def test_a_call_belongs_to_the_transaction_that_it_is_in() -> None:
    with transaction.atomic():
        relayed.delay("x")
        transaction.set_rollback(True)
    assert ids() == set()


def test_the_message_is_that_of_an_enqueue() -> None:
    options: dict[str, Any] = {"queue": "ranked", "priority": 3, "headers": {"a": "b"}}
    relayed.apply_async(("x",), expires=60, shadow="y", link=tasks.record.si("z"), **options)
    called = messages.get()
    with transaction.atomic():
        enqueued = messages.enqueue(
            relayed.s("x").set(expires=60, shadow="y", link=tasks.record.si("z"), **options)
        )
    for name in ("task", "queue", "exchange", "routing_key"):
        assert getattr(called, name) == getattr(enqueued, name)
    own = {"id", "root_id", "expires"}
    assert {n: v for n, v in called.headers.items() if n not in own} == {
        n: v for n, v in enqueued.headers.items() if n not in own
    }
    assert len(bytes(called.body)) == len(bytes(enqueued.body))


def test_what_cannot_be_held_is_refused() -> None:
    with pytest.raises(ValueError, match="its own task_id 'mine'"):
        relayed.apply_async(("x",), task_id="mine")
    with pytest.raises(UnserializableArgument, match="argument 1"):
        relayed.delay(object())
    assert ids() == set()


def test_every_task_of_an_app_may_go_through_the_outbox() -> None:
    app = Celery("other", task_cls=OutboxTask, set_as_current=False)

    @app.task(name="tests.of_an_app")
    def of_an_app() -> None:
        pass

    of_an_app.delay()
    assert_enqueued("tests.of_an_app")


def test_a_project_names_it_before_django_is_set_up(tmp_path: Path) -> None:
    """Its package imports celery.py, and Django's settings are a module of that package."""
    project = tmp_path / "ownproject"
    project.mkdir()
    (project / "__init__.py").write_text("from ownproject.celery import app\n")
    (project / "celery.py").write_text(
        "from celery import Celery\n"
        "from outbox.celery import OutboxTask\n"
        "app = Celery('ownproject', task_cls=OutboxTask)\n"
    )
    (project / "settings.py").write_text("INSTALLED_APPS = ['idempotency', 'outbox']\n")
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "ownproject.settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    code = "import django; django.setup(); import ownproject; print(ownproject.app.Task.mro()[1])"
    said = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert said.stdout == "<class 'outbox.celery.OutboxTask'>\n", said.stderr


# Chains and groups


@pytest.mark.parametrize(
    "call",
    [
        lambda steps: chain(*steps).delay(),
        lambda steps: (steps[0] | steps[1] | steps[2]).apply_async(),
        lambda steps: chain(steps[0], chain(steps[1], steps[2]))(),
    ],
)
def test_a_chain_is_one_message(call: Any, memory_broker: MemoryBroker) -> None:
    with transaction.atomic():
        result = call([relayed.s("1"), relayed.s("2"), relayed.si("3")])
    (message,) = messages.all()
    assert memory_broker.queue() == []
    assert drain_outbox() == 1
    assert ran == [("1",), ("done", "2"), ("3",)]
    assert isinstance(result, AsyncResult)
    assert result.id != str(message.pk)  # Celery returns the result of the last step


def test_a_chain_of_one_is_its_task(memory_broker: MemoryBroker) -> None:
    result = chain(relayed.s("only")).delay()
    assert ids() == {result.id}
    assert memory_broker.queue() == []
    assert drain_outbox() == 1
    assert ran == [("only",)]


def test_a_chain_that_ends_in_a_group_is_one_message(memory_broker: MemoryBroker) -> None:
    (relayed.s("1") | group(relayed.si("2"), relayed.si("3"))).delay()
    assert messages.count() == 1
    assert drain_outbox() == 1
    assert ran == [("1",), ("2",), ("3",)]
    assert memory_broker.queue() == []


@pytest.mark.parametrize(
    "call",
    [
        lambda one, two, three: group(one, two).delay(),
        lambda one, two, three: group(one, two)(),
        lambda one, two, three: group(chain(one, two), three).delay(),
        lambda one, two, three: chord([one, two], three).delay(),
    ],
)
def test_a_group_or_chord_is_refused(call: Any, memory_broker: MemoryBroker) -> None:
    with pytest.raises((UnsupportedSignature, NotImplementedError)) as caught:
        call(relayed.s("1"), relayed.s("2"), relayed.s("3"))
    if isinstance(caught.value, UnsupportedSignature):
        assert "enqueue_many(group)" in str(caught.value)
    assert memory_broker.queue() == []
    assert ids() == set()


def test_a_group_goes_through_enqueue_many() -> None:
    with transaction.atomic():
        messages.enqueue_many(group(relayed.s("1"), relayed.s("2")))
    assert drain_outbox() == 2


# Celery's own


def test_beat_publishes_at_once(memory_broker: MemoryBroker) -> None:
    assert os.environ.get("CELERY_BROKER_URL") is None
    app: Any = current_app
    scheduler: Any = Scheduler(app=app, lazy=True)
    entry: Any = ScheduleEntry(
        name="x", task="tests.relayed", schedule=schedule(1), args=("beat",), app=app
    )
    scheduler.apply_entry(entry, producer=scheduler.producer)
    assert len(memory_broker.queue()) == 1
    assert ids() == set()


def test_eager_mode_waits_for_the_commit_where_it_is_asked_to(
    eager: None, django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        relayed.delay_on_commit("x")
        assert ran == []
    assert ran == [("x",)]
    assert ids() == set()


def test_eager_mode_runs_it_here(eager: None) -> None:
    assert relayed.delay("x").get() == "done"
    assert relayed.apply_async(("y",)).get() == "done"
    chain(relayed.s("1"), relayed.si("2")).delay()
    group(relayed.s("3"), relayed.s("4")).delay()
    assert [args[-1] for args in ran] == ["x", "y", "1", "2", "3", "4"]
    assert ids() == set()


def test_a_direct_call_is_a_call() -> None:
    assert relayed("x") == "done"
    assert relayed.apply(("y",)).get() == "done"
    assert ids() == set()


def test_a_call_from_a_drained_task_is_enqueued(memory_broker: MemoryBroker) -> None:
    calls_relayed.delay()
    assert drain_outbox() == 2
    assert ran == [("from a task",)]
    assert memory_broker.queue() == []

"""For users' tests: run what is enqueued, find what is enqueued."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY

import pytest
from celery import chain, current_app, group, shared_task, signature
from celery.exceptions import MaxRetriesExceededError
from django.db import DataError, connection, transaction

from idempotency.testing import override_idempotency
from outbox import testing, wire
from outbox.models import OutboxMessage
from outbox.testing import assert_enqueued, drain_outbox
from tests.project import tasks
from tests.project.models import Effect
from tests.unit.outbox.rows import status_of

if TYPE_CHECKING:
    from celery import Task

    from tests.unit.outbox.conftest import MemoryBroker

pytestmark = pytest.mark.django_db(databases=["default", "other"])

record: Any = tasks.record
record_once: Any = tasks.record_once
fail: Any = tasks.fail
fail_guarded: Any = tasks.fail_guarded
messages = OutboxMessage.objects
ran: list[Any] = []


@shared_task(name="tests.note", bind=True)
def _note(self: Task[..., Any], /, *args: Any, **kwargs: Any) -> str:
    ran.append((args, self.request.id))
    return f"noted {len(ran)}"


note: Any = _note


@shared_task(name="tests.note_again", bind=True, max_retries=2)
def note_again(self: Task[..., Any]) -> None:
    ran.append(self.request.retries)
    raise self.retry(countdown=0)


@shared_task(name="tests.note_error")
def note_error(request: Any, error: Exception, traceback: Any) -> None:
    ran.append((request.id, str(error)))


@shared_task(name="tests.divide")
def divide() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


@shared_task(name="tests.enqueue_another")
def enqueue_another(number: int) -> None:
    ran.append(number)
    if number:
        with transaction.atomic():
            messages.enqueue(enqueue_another.s(number - 1))


@shared_task(name="tests.enqueue_for_ever")
def enqueue_for_ever() -> None:
    with transaction.atomic():
        messages.enqueue(enqueue_for_ever.s())


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


def enqueue(target: Any, **options: Any) -> OutboxMessage:
    with transaction.atomic(using=options.get("using") or "default"):
        message: OutboxMessage = messages.enqueue(target, **options)
        return message


# drain_outbox


def test_draining_runs_what_is_enqueued_in_order() -> None:
    enqueue(record.s("1"))
    enqueue(record.s("2"))
    assert drain_outbox() == 2
    assert list(Effect.objects.order_by("pk").values_list("label", flat=True)) == ["1", "2"]
    assert drain_outbox() == 0


def test_draining_does_not_run_what_was_rolled_back() -> None:
    with transaction.atomic():
        enqueue(record.s("1"))
        transaction.set_rollback(True)
    assert drain_outbox() == 0


@pytest.mark.parametrize("task", [record, record_once])
def test_draining_runs_the_messages_of_a_key_in_their_order(task: Any) -> None:
    later = enqueue(task.s("1").set(countdown=3600), ordering_key="k")
    for label in "23":
        enqueue(task.s(label), ordering_key="k")
    assert drain_outbox() == 3
    assert list(Effect.objects.order_by("pk").values_list("label", flat=True)) == ["1", "2", "3"]
    assert not OutboxMessage.objects.pending().exists()
    assert status_of(later) == ("published" if task is record else "executed")


def test_draining_goes_on_with_a_key_where_guards_are_switched_off() -> None:
    for label in "12":
        enqueue(record_once.s(label), ordering_key="k")
    with override_idempotency(enabled=False):
        assert drain_outbox() == 2


def test_draining_stops_at_the_first_of_a_key_that_fails() -> None:
    first, second = (enqueue(fail_guarded.s(label), ordering_key="k") for label in "12")
    with pytest.raises(RuntimeError, match="1"):
        drain_outbox()
    assert drain_outbox() == 0
    assert (status_of(first), status_of(second)) == ("failed", "pending")


def test_draining_does_not_wait() -> None:
    enqueue(record.s("x").set(countdown=3600))
    assert drain_outbox() == 1


def test_draining_writes_what_the_relay_and_the_worker_would() -> None:
    plain, guarded = enqueue(record.s("x")), enqueue(record_once.s("y"))
    drain_outbox()
    assert (status_of(plain), status_of(guarded)) == ("published", "executed")


def test_draining_runs_what_the_tasks_enqueue() -> None:
    enqueue(enqueue_another.s(3))
    assert drain_outbox() == 4
    assert ran == [3, 2, 1, 0]


def test_draining_ends_even_if_the_tasks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "MOST", 20)
    enqueue(enqueue_for_ever.s())
    with pytest.raises(RuntimeError, match=r"20 messages ran and .* is still pending"):
        drain_outbox()


def test_the_task_knows_its_message() -> None:
    message = enqueue(note.s(Decimal("1.50")))
    drain_outbox()
    assert ran == [((Decimal("1.50"),), str(message.pk))]


def test_a_failure_is_raised_and_recorded_and_the_rest_left() -> None:
    failing, left = enqueue(fail.s("boom")), enqueue(record.s("x"))
    with pytest.raises(RuntimeError, match="boom"):
        drain_outbox()
    failing.refresh_from_db()
    assert failing.status == "failed"
    assert failing.errors[0]["error"] == "RuntimeError: boom"
    assert status_of(left) == "pending"
    assert drain_outbox() == 1


def test_a_failure_that_breaks_the_tests_transaction_is_raised_itself() -> None:
    enqueue(divide.s())
    with pytest.raises(DataError, match="division by zero"), transaction.atomic():
        drain_outbox()


def test_a_failure_is_recorded_on_the_messages_alias() -> None:
    failing = enqueue(fail.s("boom"), using="other")
    with pytest.raises(RuntimeError, match="boom"):
        drain_outbox(using="other")
    failing.refresh_from_db(using="other")
    assert failing.status == "failed"


def test_a_task_that_this_process_does_not_know_fails() -> None:
    failing = enqueue(signature("tests.unknown"))
    with pytest.raises(KeyError):
        drain_outbox()
    assert status_of(failing) == "failed"


def test_a_guarded_failure_leaves_nothing_behind() -> None:
    failing = enqueue(tasks.fail_guarded.s("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        drain_outbox()
    assert status_of(failing) == "failed"
    assert not Effect.objects.exists()


def test_retries_run_at_once_until_they_are_used_up() -> None:
    message = enqueue(note_again.s())
    with pytest.raises(MaxRetriesExceededError):
        drain_outbox()
    assert ran == [0, 1, 2]
    assert status_of(message) == "failed"


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (lambda: note.s("1").set(link=note.s("2")), [("1",), ("noted 1", "2")]),
        (lambda: note.s("1").set(link=[note.si("2"), note.si("3")]), [("1",), ("2",), ("3",)]),
        (
            lambda: note.s("1").set(link=note.s("2").set(link=note.s("3"))),
            [("1",), ("noted 1", "2"), ("noted 2", "3")],
        ),
        (
            lambda: note.s("1").set(link=chain(note.s("2"), note.s("3"))),
            [("1",), ("noted 1", "2"), ("noted 2", "3")],
        ),
        (
            lambda: note.s("1").set(link=group(note.s("2"), note.si("3"))),
            [("1",), ("noted 1", "2"), ("3",)],
        ),
        (
            lambda: chain(note.s("1"), note.s("2"), note.si("3")),
            [("1",), ("noted 1", "2"), ("3",)],
        ),
        (
            lambda: chain(note.s("1"), note.s("2").set(link=note.s("3")), note.s("4")),
            [("1",), ("noted 1", "2"), ("noted 2", "3"), ("noted 2", "4")],
        ),
        (
            lambda: note.s("1") | group(note.s("2"), note.s("3")),
            [("1",), ("noted 1", "2"), ("noted 1", "3")],
        ),
    ],
)
def test_callbacks_and_chains_run_as_in_a_worker(
    make: Any, args: list[Any], memory_broker: MemoryBroker
) -> None:
    enqueue(make())
    assert drain_outbox() == 1
    assert [got for got, _ in ran] == args
    assert memory_broker.queue() == []  # and nothing of it went to a broker


def test_what_follows_has_the_ids_that_it_would_have_in_a_worker() -> None:
    message = enqueue(chain(note.s("1"), note.s("2")).set(link=note.s("3")))
    _, _, embedded = wire.decode(
        bytes(message.body), message.headers, message.properties, ["application/json"]
    )
    (second,) = embedded["chain"]
    (third,) = second["options"]["link"]
    drain_outbox()
    assert [id for _, id in ran] == [
        str(message.pk),
        second["options"]["task_id"],
        third["options"]["task_id"],
    ]


def test_the_rest_of_a_chain_does_not_run_after_a_failure() -> None:
    enqueue(chain(fail.s("boom"), note.si("2")))
    with pytest.raises(RuntimeError, match="boom"):
        drain_outbox()
    assert ran == []


def test_what_is_linked_to_a_failure_runs(memory_broker: MemoryBroker) -> None:
    message = enqueue(fail.s("boom").set(link_error=note.s("error")))
    with pytest.raises(RuntimeError, match="boom"):
        drain_outbox()
    assert [args for args, _ in ran] == [(str(message.pk), "error")]
    assert memory_broker.queue() == []


def test_what_is_linked_to_a_failure_is_called_with_it() -> None:
    """As Celery documents it: with the request, the error and the traceback."""
    failed = enqueue(fail.s("boom").set(link_error=note_error.s()))
    with pytest.raises(RuntimeError, match="boom"):
        drain_outbox()
    assert ran == [(str(failed.pk), "boom")]


def test_draining_takes_one_alias() -> None:
    enqueue(record.s("here"))
    enqueue(record.s("there"), using="other")
    assert drain_outbox(using="other") == 1
    assert messages.pending().count() == 1
    assert messages.using("other").published().count() == 1


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_draining_reads_what_the_project_writes(serializer: str) -> None:
    enqueue(note.s("x").set(serializer=serializer, compression="zlib"))
    assert drain_outbox() == 1


def test_eager_mode_is_no_different() -> None:
    conf: Any = current_app.conf
    conf.task_always_eager = True
    try:
        enqueue(note.s("x"))
        assert ran == []
        assert drain_outbox() == 1
        assert len(ran) == 1
    finally:
        conf.task_always_eager = False


# assert_enqueued


def test_the_newest_message_of_a_task_is_found() -> None:
    enqueue(record.s("old"))
    newest = enqueue(record.s("new"))
    enqueue(fail.s("other"))
    assert assert_enqueued(record) == newest
    assert assert_enqueued("tests.project.tasks.record") == newest


def test_a_signature_is_refused_because_its_arguments_would_not_be_compared() -> None:
    enqueue(record.s("x"))
    with pytest.raises(TypeError, match="not a signature"):
        assert_enqueued(record.s("y"))


def test_arguments_and_key_are_compared() -> None:
    wanted = enqueue(record.s("x", lock=None), key="k")
    enqueue(record.s("y", lock=None))
    assert assert_enqueued(record, args=["x"]) == wanted
    assert assert_enqueued(record, args=("x",), kwargs={"lock": None}, key="k") == wanted
    others: list[dict[str, Any]] = [{"args": ["z"]}, {"kwargs": {}}, {"key": "other"}, {"args": []}]
    for other in others:
        with pytest.raises(AssertionError):
            assert_enqueued(record, **other)


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_arguments_are_compared_as_they_were_given(serializer: str) -> None:
    args = [(1, ("x", Decimal("1.10"))), {2: b"y"}]
    wanted = enqueue(note.s(*args, at={"a": (3,)}).set(serializer=serializer))
    assert assert_enqueued(note, args=args, kwargs={"at": {"a": (3,)}}) == wanted
    for other in ([(1, ("x", "1.10")), {2: b"y"}], [object(), ANY], []):
        with pytest.raises(AssertionError):
            assert_enqueued(note, args=other)
    assert assert_enqueued(note, args=[ANY, ANY]) == wanted


def test_a_failing_assertion_lists_what_there_is() -> None:
    enqueue(record.s("x", lock=5), key="k")
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(fail, args=["y"])
    told = str(caught.value)
    assert "tests.project.tasks.fail args=['y'] kwargs=None key=None is not in the outbox" in told
    assert "tests.project.tasks.record ['x'] {'lock': 5} key='k'" in told


def test_an_empty_outbox_holds_nothing() -> None:
    with pytest.raises(AssertionError, match="which holds:"):
        assert_enqueued(record)


def test_another_alias_is_looked_at_when_asked() -> None:
    there = enqueue(record.s("x"), using="other")
    assert assert_enqueued(record, using="other") == there
    with pytest.raises(AssertionError):
        assert_enqueued(record)

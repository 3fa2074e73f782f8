"""Which delivery runs, and what becomes of one that meets a live twin."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.exceptions import Reject
from django.db import OperationalError, connection, transaction

from idempotency import idempotent
from idempotency.celery import (
    drop_dead_connection,
    message_id,
    never_retry,
    retry_later,
    task_of,
)
from idempotency.decorators import guard_of
from idempotency.exceptions import KeyInProgress
from tests.project.celery import app
from tests.project.tasks import record, record_once

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def executing(task: Any, **request: Any) -> Iterator[Any]:
    """What a worker does around a task: the task has a request that was delivered."""
    task.push_request(id="message", called_directly=False, args=(), kwargs={}, **request)
    try:
        yield task
    finally:
        task.pop_request()


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A task of an app whose broker is away."""
    # Celery prefers it to what an app is told.
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    lonely = Celery(broker="amqp://guest@127.0.0.1:1//", set_as_current=False)
    lonely.conf.update(task_publish_retry=False, broker_transport_options={"max_retries": 0})

    @lonely.task(name="tests.lonely", max_retries=2, shared=False)
    def task() -> None: ...

    yield lonely.tasks["tests.lonely"]
    lonely.close()


def test_a_guard_finds_its_task_and_a_function_none() -> None:
    guard = guard_of(record_once)
    assert guard
    found = task_of(guard)
    assert found
    assert found.name == record_once.name

    def function() -> None: ...

    plain = guard_of(idempotent(function))
    assert plain
    assert task_of(plain) is None


def test_a_task_that_is_registered_later_is_found() -> None:
    @idempotent
    def body() -> None: ...

    guard = guard_of(body)
    assert guard
    assert task_of(guard) is None
    made = app.task(name="tests.later", shared=False)(body)
    try:
        assert task_of(guard) is app.tasks["tests.later"]
    finally:
        app.tasks.unregister(made.name)


def test_only_a_delivery_has_a_message_id() -> None:
    assert message_id(record) == ""
    with executing(record):
        assert message_id(record) == "message"
        never_retry(record)
        assert message_id(record) == ""
    assert message_id(record) == ""


def test_without_a_worker_a_twin_is_told_to_the_caller() -> None:
    error = KeyInProgress("k")
    with executing(record, is_eager=True), pytest.raises(KeyInProgress) as raised:
        retry_later(record, error)
    assert raised.value is error


def test_a_delivery_that_cannot_be_put_off_goes_back_to_the_broker(unreachable: Any) -> None:
    """Celery itself would reject it for good, and the twin may yet fail."""
    with executing(unreachable, delivery_info={}, retries=2), pytest.raises(Reject) as raised:
        retry_later(unreachable, KeyInProgress("k"))
    assert raised.value.requeue  # type: ignore[attr-defined]
    assert isinstance(raised.value.__cause__, KeyInProgress)


def test_the_request_keeps_its_count_of_retries(unreachable: Any) -> None:
    with executing(unreachable, delivery_info={}, retries=2):
        with pytest.raises(Reject):
            retry_later(unreachable, KeyInProgress("k"))
        assert unreachable.request.retries == 2


@pytest.mark.django_db(transaction=True)
def test_a_dead_connection_is_let_go() -> None:
    connection.ensure_connection()
    drop_dead_connection("default")
    held = connection.connection
    assert held is not None
    held.close()
    drop_dead_connection("default")
    assert connection.connection is None


@pytest.mark.django_db(transaction=True)
def test_a_dead_connection_is_kept_until_its_transaction_has_ended() -> None:
    """What was written in it is gone, and the caller must hear of that."""

    def die() -> None:
        with transaction.atomic():
            held: Any = connection.connection
            held.close()
            drop_dead_connection("default")
            assert connection.connection is held
            connection.cursor().execute("SELECT 1")

    with pytest.raises(OperationalError, match="the connection is closed"):
        die()

"""A delivery that is older than the window: refused, unless its key is still there."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from idempotency import idempotent
from idempotency.exceptions import KeyReused, WindowExpired
from idempotency.models import IdempotencyKey
from idempotency.signals import window_expired
from tests.project.celery import app
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Task

pytestmark = [pytest.mark.django_db, pytest.mark.database]

TTL = timedelta(minutes=10)
MOMENT = timedelta(seconds=30)


@contextmanager
def guarded_task(*, ttl: timedelta | None = TTL, **options: Any) -> Iterator[Task[..., Any]]:
    @idempotent(ttl=ttl, **options)
    def body(label: str) -> str:
        Effect.objects.create(label=label)
        return label

    made = app.task(name="tests.window", shared=False, autoretry_for=(Exception,))(body)
    try:
        yield made
    finally:
        app.tasks.unregister(made.name)


def database_now() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
        return now


def deliver(task: Task[..., Any], age: timedelta, id: str = "m") -> Any:
    published_at = (database_now() - age).isoformat()
    return task.apply(("once",), task_id=id, headers={"published_at": published_at})


def test_a_delivery_within_the_window_is_executed() -> None:
    with guarded_task() as task:
        assert deliver(task, TTL - MOMENT).get() == "once"
    assert Effect.objects.count() == 1


def test_a_delivery_after_the_window_is_refused_and_says_why() -> None:
    with guarded_task() as task, pytest.raises(WindowExpired) as raised:
        deliver(task, TTL + MOMENT).get()
    assert "longer than the window of 0:10:00" in str(raised.value)
    assert "was not executed" in str(raised.value)
    assert not Effect.objects.exists()
    assert not IdempotencyKey.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("mode", ["atomic", "leased"])
def test_a_late_delivery_is_refused_without_use_tz_too(settings: Any, mode: str) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "America/New_York"
    published_at = datetime.now(UTC) - TTL - MOMENT
    with guarded_task(mode=mode) as task:
        headers = {"published_at": published_at.isoformat()}
        assert isinstance(task.apply(("once",), task_id="m", headers=headers).result, WindowExpired)
    assert not Effect.objects.exists()


def test_the_setting_is_the_default_window(settings: Any) -> None:
    settings.IDEMPOTENCY_TTL = 60
    with guarded_task(ttl=None) as task:
        assert deliver(task, timedelta(seconds=30), "early").get() == "once"
        assert isinstance(deliver(task, timedelta(seconds=90), "late").result, WindowExpired)


def test_it_is_a_final_failure_whatever_the_task_retries() -> None:
    with guarded_task() as task:
        assert deliver(task, TTL + MOMENT).state == "FAILURE"


def test_a_late_duplicate_whose_key_is_still_there_is_replayed() -> None:
    """As where the execution itself came late in the window."""
    with guarded_task() as task:
        deliver(task, TTL - MOMENT).get()
        assert deliver(task, TTL + MOMENT).get() == "once"
    assert Effect.objects.count() == 1


def test_a_late_duplicate_whose_key_has_expired_is_refused() -> None:
    """The key outlives the window of each delivery that was published before the execution."""
    with guarded_task() as task:
        deliver(task, timedelta(0)).get()
        IdempotencyKey.objects.update(expires_at=database_now())
        assert isinstance(deliver(task, TTL + MOMENT).result, WindowExpired)
        IdempotencyKey.objects.purge()
        assert isinstance(deliver(task, TTL + MOMENT).result, WindowExpired)
    assert Effect.objects.count() == 1


def test_a_key_is_there_until_the_window_of_each_earlier_publish_is_over() -> None:
    published_at = database_now()
    with guarded_task() as task:
        headers = {"published_at": published_at.isoformat()}
        task.apply(("once",), task_id="m", headers=headers).get()
    expires_at = IdempotencyKey.objects.get().expires_at
    assert expires_at is not None
    assert expires_at >= published_at + TTL


def test_on_completed_execute_does_not_execute_a_late_delivery_either() -> None:
    with guarded_task(on_completed="execute") as task:
        deliver(task, timedelta(0)).get()
        assert isinstance(deliver(task, TTL + MOMENT).result, WindowExpired)
    assert Effect.objects.count() == 1


def test_on_completed_raise_still_says_that_it_was_executed() -> None:
    with guarded_task(on_completed="raise") as task:
        deliver(task, timedelta(0)).get()
        assert isinstance(deliver(task, TTL + MOMENT).result, KeyReused)


@pytest.mark.parametrize("headers", [None, {}, {"published_at": "soon"}, {"published_at": 5}])
def test_without_a_relays_stamp_there_is_nothing_to_compare(headers: Any) -> None:
    with guarded_task() as task:
        assert task.apply(("once",), task_id="m", headers=headers).get() == "once"


def test_a_stamp_without_a_time_zone_is_no_relays() -> None:
    with guarded_task() as task:
        headers = {"published_at": "2020-01-01T00:00:00"}
        assert task.apply(("once",), task_id="m", headers=headers).get() == "once"


def test_the_comparison_costs_no_statement() -> None:
    with guarded_task() as task:
        deliver(task, timedelta(0), "warm").get()
        with CaptureQueriesContext(connection) as without:
            task.apply(("once",), task_id="without").get()
        published_at = database_now().isoformat()
        with CaptureQueriesContext(connection) as stamped:
            headers = {"published_at": published_at}
            task.apply(("once",), task_id="stamped", headers=headers).get()
    assert len(stamped) == len(without)


def test_it_is_counted_once_and_logged_without_the_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "idempotency")
    counted: list[str] = []

    def receiver(*, message_id: str, **kwargs: Any) -> None:
        counted.append(message_id)

    window_expired.connect(receiver)
    try:
        with guarded_task(key="person@{label}") as task:
            deliver(task, TTL + MOMENT)
    finally:
        window_expired.disconnect(receiver)
    assert counted == ["m"]
    assert "WindowExpired" in caplog.text
    assert "person@" not in caplog.text

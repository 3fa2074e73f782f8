"""Configurations that are refused at start."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.core.checks import run_checks
from django.db import connections

from idempotency import idempotent
from idempotency.checks import (
    check_database,
    check_redis,
    check_settings,
    check_tasks,
    check_window,
    require_window,
)
from tests.project.celery import app

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def guarded_task(ttl: float | None = None, rules: Any = None, **options: Any) -> Iterator[None]:
    def body() -> None: ...

    as_task: Any = app.task(name="tests.checked", shared=False, **options)
    made = as_task(idempotent(ttl=ttl, **(rules or {}))(body))
    try:
        yield
    finally:
        app.tasks.unregister(made.name)


def found(check: Any, **arguments: Any) -> list[tuple[str | None, str]]:
    return [(message.id, message.msg) for message in check(None, **arguments)]


def found_in_redis(about: str = "tests.checked") -> list[tuple[str | None, str]]:
    """Without what is said of other tests' tasks: this app may know them, with Redis elsewhere."""
    return [(id, text) for id, text in found(check_redis) if about in text]


def test_the_test_project_is_in_order() -> None:
    assert found(check_settings) == []
    assert found(check_tasks) == []
    assert found(check_window) == []
    assert found_in_redis("tests.project") == []
    assert found(check_database, databases=["default", "other"]) == []


@pytest.mark.parametrize(
    ("option", "id"),
    [("acks_late", "idempotency.E002"), ("reject_on_worker_lost", "idempotency.E003")],
)
def test_a_guarded_task_that_a_dying_worker_loses_is_refused(option: str, id: str) -> None:
    with guarded_task(**{option: False}):
        [(found_id, text)] = found(check_tasks)
    assert found_id == id
    assert "tests.checked" in text


def test_a_guarded_task_with_both_is_in_order() -> None:
    with guarded_task(acks_late=True, reject_on_worker_lost=True):
        assert found(check_tasks) == []


IN_REDIS = {"mode": "leased", "store": "redis"}


def test_leases_in_redis_without_a_server_are_refused(settings: Any) -> None:
    with guarded_task(rules=IN_REDIS):
        [(id, text)] = found_in_redis()
        settings.IDEMPOTENCY_REDIS_URL = "redis://localhost:1/0"
        assert found_in_redis() == []
    assert id == "idempotency.E007"
    assert "tests.checked" in text


def test_leases_in_redis_without_the_package_are_refused(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.IDEMPOTENCY_REDIS_URL = "redis://localhost:1/0"

    def is_there(name: str) -> object:
        return None if name == "redis" else name

    monkeypatch.setattr("idempotency.checks.find_spec", is_there)
    with guarded_task(rules=IN_REDIS):
        [(id, text)] = found_in_redis()
    assert id == "idempotency.E008"
    assert "tests.checked" in text


@pytest.mark.parametrize("rules", [{}, {"mode": "leased"}])
def test_leases_in_postgresql_need_no_redis(rules: dict[str, Any]) -> None:
    with guarded_task(rules=rules):
        assert found_in_redis() == []


def test_an_unknown_setting_is_refused(settings: Any) -> None:
    settings.IDEMPOTENCY_TTTL = 5
    [(id, text)] = found(check_settings)
    assert id == "idempotency.E001"
    assert "Did you mean IDEMPOTENCY_TTL?" in text


def test_another_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections["other"], "vendor", "sqlite")
    [(id, text)] = found(check_database, databases=["default", "other"])
    assert id == "idempotency.E004"
    assert "'other'" in text


@contextmanager
def broker(url: str, **options: Any) -> Iterator[None]:
    before = app.conf.broker_url, app.conf.broker_transport_options
    app.conf.update(broker_url=url, broker_transport_options=options)
    try:
        yield
    finally:
        app.conf.update(broker_url=before[0], broker_transport_options=before[1])


@pytest.mark.parametrize(
    ("options", "told"), [({"visibility_timeout": 7200}, "2:00:00"), ({}, "1:00:00")]
)
def test_a_window_shorter_than_the_brokers_visibility_timeout_is_refused(
    options: dict[str, int], told: str
) -> None:
    with guarded_task(ttl=3000), broker("redis://localhost:1/0", **options):
        [(id, text)] = found(check_window)
    assert id == "idempotency.E005"
    assert "tests.checked" in text
    assert "0:50:00" in text
    assert told in text


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://localhost:1/0", {"visibility_timeout": 3000}),
        ("amqp://localhost:1//", {"visibility_timeout": 7200}),  # not a thing that AMQP has
    ],
)
def test_a_window_as_long_as_the_visibility_timeout_is_in_order(
    url: str, options: dict[str, int]
) -> None:
    with guarded_task(ttl=3000), broker(url, **options):
        assert found(check_window) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_retries": 5, "default_retry_delay": 60}, "0:05:00"),
        (
            {"max_retries": 8, "autoretry_for": (ValueError,), "retry_backoff": True},
            "0:04:15",
        ),
        (
            {
                "max_retries": 1000,
                "autoretry_for": (ValueError,),
                "retry_backoff": 2,
                "retry_backoff_max": 10,
            },
            "2:46:24",
        ),
    ],
)
def test_a_window_shorter_than_the_tasks_retries_is_refused(
    options: dict[str, Any], told: str
) -> None:
    with guarded_task(ttl=240, **options):
        [(id, text)] = found(check_window)
    assert id == "idempotency.E006"
    assert "0:04:00" in text
    assert told in text


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": 5, "default_retry_delay": 48},
        {"max_retries": 0},
        {"max_retries": None},  # without bound: the setting tells nothing
    ],
)
def test_a_window_as_long_as_the_tasks_retries_is_in_order(options: dict[str, Any]) -> None:
    with guarded_task(ttl=240, **options):
        assert found(check_window) == []


def test_a_worker_starts_only_with_a_window_that_is_long_enough(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded_task(ttl=240, max_retries=5, default_retry_delay=60):
        with pytest.raises(SystemExit, match=r"0:04:00.*0:05:00"):
            require_window()
        with monkeypatch.context() as patched:
            patched.setenv("CELERY_SKIP_CHECKS", "1")
            require_window()
        settings.SILENCED_SYSTEM_CHECKS = ["idempotency.E006", "outbox.E004"]
        require_window()


def test_a_real_worker_with_a_short_window_does_not_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "celery", "--app=tests.project", "worker", "--pool=solo"],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.unit.idempotency.short_window"},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "This worker does not start." in done.stderr
    assert "recognised for 0:01:00, which is shorter than the 0:09:00" in done.stderr


def test_they_are_registered(settings: Any) -> None:
    settings.IDEMPOTENCY_TTTL = 5
    assert "idempotency.E001" in {message.id for message in run_checks()}


def test_they_find_tasks_that_nothing_has_imported() -> None:
    """As under ``manage.py check``, and in a worker, whose start runs the checks."""
    program = (
        "import django; django.setup()\n"
        "from django.core.checks import run_checks\n"
        "print(sorted(m.id for m in run_checks() if m.id.startswith('idempotency')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.unit.idempotency.acks_early",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert "idempotency.E002" in done.stdout

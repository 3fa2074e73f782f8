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
from idempotency.checks import check_database, check_settings, check_tasks
from tests.project.celery import app

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def guarded_task(**options: Any) -> Iterator[None]:
    @idempotent
    def body() -> None: ...

    made = app.task(name="tests.checked", **options)(body)
    try:
        yield
    finally:
        app.tasks.unregister(made.name)


def found(check: Any, **arguments: Any) -> list[tuple[str | None, str]]:
    return [(message.id, message.msg) for message in check(None, **arguments)]


def test_the_test_project_is_in_order() -> None:
    assert found(check_settings) == []
    assert found(check_tasks) == []
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

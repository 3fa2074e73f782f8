"""Configurations of the outbox that are refused at start."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, current_app
from celery.app import app_or_default
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.utils.module_loading import autodiscover_modules

from idempotency.checks import WINDOW, require_window
from outbox.checks import (
    check_confirms,
    check_database,
    check_default_app,
    check_retention,
    check_settings,
    check_window,
)


def texts() -> list[str]:
    return [message.msg for message in check_window(None) if message.id == "outbox.E004"]


def test_the_default_window_is_longer_than_the_default_redeliveries() -> None:
    assert texts() == []


def test_a_window_shorter_than_the_redeliveries_is_refused(settings: Any) -> None:
    settings.OUTBOX_REDELIVER_AFTER = 60
    settings.OUTBOX_MAX_REDELIVERIES = 6
    settings.IDEMPOTENCY_TTL = timedelta(minutes=62)
    told = texts()
    assert any("tests.project.tasks.record_once " in text for text in told)
    for text in told:
        assert "1:02:00" in text  # the window
        assert "1:03:00" in text  # 1 + 2 + 4 + 8 + 16 + 32 minutes
    settings.IDEMPOTENCY_TTL = timedelta(minutes=63)
    assert texts() == []


@pytest.mark.parametrize("redeliveries", [40, 10_000])
def test_redeliveries_for_ever_are_longer_than_any_window(settings: Any, redeliveries: int) -> None:
    settings.OUTBOX_MAX_REDELIVERIES = redeliveries
    assert texts()


@pytest.mark.parametrize(("days", "told"), [(6, 1), (7, 0), (30, 0)])
def test_a_retention_shorter_than_the_window_is_told(settings: Any, days: int, told: int) -> None:
    settings.OUTBOX_RETENTION = timedelta(days=days)
    warnings = check_retention(None)
    assert [warning.id for warning in warnings] == ["outbox.W001"] * told
    for warning in warnings:
        assert "6 days, 0:00:00" in warning.msg
        assert "7 days, 0:00:00" in warning.msg


# The settings


def test_known_settings_pass(settings: Any) -> None:
    settings.OUTBOX_BATCH_SIZE = 100
    settings.OUTBOX_POLL_INTERVAL = 0.5
    assert check_settings(None) == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OUTBOX_BATCHSIZE", 5, "Did you mean OUTBOX_BATCH_SIZE?"),
        ("OUTBOX_POLL_INTERVALL", 5, "Did you mean OUTBOX_POLL_INTERVAL?"),
        ("OUTBOX_ZZZ", 5, "OUTBOX_ZZZ is not a setting of this app."),
        ("OUTBOX_BATCH_SIZE", "500", "OUTBOX_BATCH_SIZE must be a value of type int, not '500'."),
        ("OUTBOX_BATCH_SIZE", True, "OUTBOX_BATCH_SIZE must be"),
        ("OUTBOX_POLL_INTERVAL", -1, "OUTBOX_POLL_INTERVAL must be greater than zero"),
    ],
)
def test_a_setting_that_is_unknown_or_wrong_is_an_error(
    name: str, value: object, told: str, settings: Any
) -> None:
    setattr(settings, name, value)
    (error,) = check_settings(None)
    assert error.id == "outbox.E001"
    assert told in error.msg
    with pytest.raises(SystemCheckError, match=name):
        call_command("check")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OUTBOX_REDELIVER_AFTER", "5 minutes"),
        ("OUTBOX_MAX_REDELIVERIES", None),
        ("OUTBOX_RETENTION", 0),
        ("IDEMPOTENCY_TTL", "7d"),
    ],
)
def test_a_setting_without_a_value_is_an_error_of_the_check_that_says_so(
    settings: Any, name: str, value: Any
) -> None:
    """Those that compare it with another leave it to that one; a worker does not start either."""
    settings.IDEMPOTENCY_REDIS_URL = "redis://h"  # other tests' tasks ask for one
    setattr(settings, name, value)
    for found in (checks.run_checks(), checks.run_checks(tags=[WINDOW])):
        errors = [str(message.msg) for message in found if message.is_serious()]
        assert [error for error in errors if not error.startswith(f"{name} must be ")] == []
        assert len(errors) == 1
    with pytest.raises(SystemExit, match=f"does not start.\n.*E001: {name} must be [^\n]*[.]$"):
        require_window()


# The broker


@pytest.mark.parametrize("url", ["amqp://h//", "pyamqp://h//", "amqps://h//", "amqp://a;amqp://b"])
@pytest.mark.parametrize("options", [{}, {"confirm_publish": False}])
def test_amqp_without_confirms_is_refused(
    url: str, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    monkeypatch.setitem(current_app.conf, "broker_transport_options", options)
    (error,) = check_confirms(None)
    assert error.id == "outbox.E002"
    assert "confirm_publish" in str(error.hint)


@pytest.mark.parametrize("url", ["amqp://h//", "redis://h", "memory://"])
def test_confirms_are_asked_of_amqp_only(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    options = {"confirm_publish": True} if url.startswith("amqp") else {}
    monkeypatch.setitem(current_app.conf, "broker_transport_options", options)
    assert check_confirms(None) == []


@pytest.mark.parametrize("url", ["bogus://h", "redis://h:port", "redis://[h"])
def test_a_broker_that_cannot_be_is_an_error_and_no_traceback(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    with pytest.raises(SystemCheckError, match=r"outbox\.E005.* broker's address: \w+Error: "):
        call_command("outbox_relay", once=True, skip_checks=False)


def test_a_broker_whose_client_is_not_installed_is_an_error_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    autodiscover_modules("tasks")  # those of the sample project use it
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://h")
    monkeypatch.setattr("kombu.transport._transport_cache", {})
    monkeypatch.delitem(sys.modules, "kombu.transport.redis", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(SystemCheckError, match=r"(?s)outbox\.E005.*install celery\[redis\]"):
        call_command("outbox_relay", once=True, skip_checks=False)


# The app


def test_an_app_that_other_threads_do_not_have_is_told() -> None:
    assert check_default_app(None) == []
    before: Any = app_or_default()
    try:
        mine = Celery("mine", fixups=[])
        (warning,) = check_default_app(None)
        assert (warning.id, "'mine'" in warning.msg) == ("outbox.W002", True)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(app_or_default).result() is not mine
            assert pool.submit(check_default_app, None).result() == []
        mine.set_default()
        assert check_default_app(None) == []
    finally:
        before.set_default()
        before.set_current()


# The database


def test_postgresql_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_database(None) == []
    assert check_database(None, databases=["default", "other"]) == []
    monkeypatch.setattr(connections["other"], "vendor", "sqlite")
    (error,) = check_database(None, databases=["default", "other"])
    assert (error.id, "'other'" in error.msg) == ("outbox.E003", True)


def test_the_checks_run_with_all_others() -> None:
    registered: set[Any] = {*checks.registry.registry.get_checks()}
    expected = {check_settings, check_confirms, check_window, check_retention, check_database}
    expected |= {check_default_app}
    assert expected <= registered

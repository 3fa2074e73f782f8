"""The table: what it holds unchanged, and what the database refuses."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import Permission
from django.core import serializers
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from kombu.exceptions import ContentDisallowed

from outbox.models import OutboxMessage
from tests.project.tasks import record
from tests.unit.outbox.rows import MOMENT, message

pytestmark = [pytest.mark.django_db, pytest.mark.database]

# status: for available_at, published_at, executed_at "always" set, "never" or "either".
LEGAL = {
    "pending": ("always", "never", "never"),
    "published": ("either", "always", "never"),
    "executed": ("never", "always", "always"),
    "failed": ("never", "always", "never"),
    "expired": ("never", "either", "never"),
    "dead": ("never", "never", "never"),
    "discarded": ("never", "either", "never"),
}
FIELDS = ("available_at", "published_at", "executed_at")
COMBINATIONS = [
    (status, times) for status in LEGAL for times in itertools.product((False, True), repeat=3)
]


def is_legal(status: str, times: tuple[bool, ...]) -> bool:
    allowed = {"always": {True}, "never": {False}, "either": {True, False}}
    return all(given in allowed[rule] for given, rule in zip(times, LEGAL[status], strict=True))


@pytest.mark.parametrize(("status", "times"), COMBINATIONS)
def test_the_database_ties_a_state_to_its_times(status: str, times: tuple[bool, ...]) -> None:
    row = OutboxMessage.objects.filter(pk=message().pk)
    values = {field: MOMENT if given else None for field, given in zip(FIELDS, times, strict=True)}
    if is_legal(status, times):
        assert row.update(status=status, **values) == 1
    else:
        with pytest.raises(IntegrityError, match="outbox_status_times"), transaction.atomic():
            row.update(status=status, **values)


def test_the_database_knows_every_state() -> None:
    assert set(LEGAL) == set(OutboxMessage.Status.values)
    with pytest.raises(IntegrityError, match="outbox_status_times"), transaction.atomic():
        OutboxMessage.objects.filter(pk=message().pk).update(status="invented")


def test_one_message_for_each_task_and_key() -> None:
    first, second = message(key="a"), message(key="b")
    with pytest.raises(IntegrityError, match="outbox_key_task"), transaction.atomic():
        OutboxMessage.objects.filter(pk=second.pk).update(key=first.key)


def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "outbox", check=True, dry_run=True, verbosity=0)


HEADERS: dict[str, Any] = {
    "moment": datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC),
    "price": Decimal("10.50"),
    "id": UUID(int=7),
    "bytes": b"\xff\x00",
    "nul": "\0",
    "surrogate": "\ud800",
    "number": 1e2,
    "order": {"z": 1, "a": 2},
}


def test_headers_and_properties_come_back_as_they_were() -> None:
    written = message()
    written.headers = written.properties = HEADERS
    written.save()
    read = OutboxMessage.objects.get(pk=written.pk)
    for held in (read.headers, read.properties):
        assert held == HEADERS
        assert list(held["order"]) == ["z", "a"]
        assert type(held["number"]) is float


def test_a_fixture_holds_a_message() -> None:
    written = message(headers=HEADERS)
    text = serializers.serialize("json", [written])
    OutboxMessage.objects.all().delete()
    for restored in serializers.deserialize("json", text):
        restored.save()
    read = OutboxMessage.objects.get()
    assert (read.pk, read.headers, bytes(read.body)) == (
        written.pk,
        HEADERS,
        bytes(written.body),
    )


def test_arguments_are_read_with_what_is_accepted() -> None:
    written = message(signature=record.s("x", lock=None))
    args, kwargs = written.arguments(["application/json"])
    assert (list(args), kwargs) == (["x"], {"lock": None})
    with pytest.raises(ContentDisallowed):
        written.arguments(["application/x-yaml"])


def test_a_message_is_told_by_its_task_and_id() -> None:
    written = message()
    assert str(written) == f"tests.project.tasks.record {written.pk}"


def test_the_clock_runs_on_in_a_transaction() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT now()")
        (began,) = cursor.fetchone()
    first, second = message(), message()
    assert began < first.created_at < second.created_at
    assert first.created_at <= second.available_at  # type: ignore[operator]


def test_nobody_is_permitted_to_add_change_or_delete_a_message() -> None:
    named = Permission.objects.filter(content_type__app_label="outbox")
    assert set(named.values_list("codename", flat=True)) == {
        "view_outboxmessage",
        "retry_outboxmessage",
        "retry_late_outboxmessage",
        "discard_outboxmessage",
    }

"""The keys' admin: it shows which operations have run, and tells no result."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from django.contrib.admin import AdminSite
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection, transaction
from django.urls import reverse
from django.utils import timezone

from idempotency.admin import IdempotencyKeyAdmin
from idempotency.models import IdempotencyKey
from outbox.models import OutboxMessage
from tests.project.tasks import record
from tests.unit.listing import assert_bounded, assert_indexed, captured, plans_of

if TYPE_CHECKING:
    from django.test import Client

pytestmark = [pytest.mark.django_db, pytest.mark.database]

LIST = "/admin/idempotency/idempotencykey/"
TABLE = "idempotency_idempotencykey"


def run_once(key: str = "key", namespace: str = "tests.pay", **changes: Any) -> IdempotencyKey:
    """Run an operation whose result is a secret; then change its row."""
    IdempotencyKey.objects.run_once(key, lambda: "a secret", namespace=namespace)
    found = IdempotencyKey.objects.filter(key=key, namespace=namespace)
    found.update(**changes)
    row: IdempotencyKey = found.get()
    return row


def page_of(key: IdempotencyKey, page: str = "change") -> str:
    return reverse(f"admin:idempotency_idempotencykey_{page}", args=[key.pk])


def text_of(response: Any) -> str:
    assert response.status_code == 200, response
    return str(response.content.decode())


def shown(response: Any) -> list[IdempotencyKey]:
    return list(response.context["cl"].result_list)


def test_the_list_shows_the_newest_key_first(admin_client: Client) -> None:
    old, new = run_once("old"), run_once("new", scope="tenant 7")
    response = admin_client.get(LIST)
    assert shown(response) == [new, old]
    for part in ("old", "tests.pay", "tenant 7", "completed"):
        assert part in text_of(response)
    age = response.context["cl"].list_display.index("age")
    assert shown(admin_client.get(LIST, {"o": age})) == [old, new]


def test_results_are_neither_read_by_the_list_nor_shown_anywhere(admin_client: Client) -> None:
    key = run_once(error="ValueError: another one", checkpoint=b"yet another")
    for sql in captured(admin_client, LIST, TABLE):
        for column in ("result", "checkpoint", "error"):
            assert f'"{column}"' not in sql
    assert "a secret" not in text_of(admin_client.get(LIST))
    text = text_of(admin_client.get(page_of(key)))
    assert "16 bytes, not shown" in text
    assert "11 bytes, not shown" in text
    assert "ValueError: another one" in text
    assert "a secret" not in text
    assert "yet another" not in text


def test_the_list_costs_two_statements_whatever_its_length(admin_client: Client) -> None:
    for number in range(30):
        key = run_once(f"key {number}")
    assert len(captured(admin_client, LIST, TABLE)) == 2  # the bounded count, the page
    assert len(captured(admin_client, page_of(key), TABLE)) == 1


def test_pages_of_a_project_without_time_zones(admin_client: Client, settings: Any) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "America/New_York"
    key = run_once()
    assert re.search(r">\d+ m?s<", text_of(admin_client.get(LIST)))
    assert "(in 6 d)" in text_of(admin_client.get(page_of(key)))


def test_the_state_filter(admin_client: Client) -> None:
    completed = run_once("completed")
    unknown = run_once("unknown", state="outcome_unknown", result=None, expires_at=None)
    assert shown(admin_client.get(LIST, {"state": "outcome_unknown"})) == [unknown]
    assert shown(admin_client.get(LIST, {"state": "completed"})) == [completed]
    assert shown(admin_client.get(LIST, {"state": "in_progress"})) == []
    assert shown(admin_client.get(LIST, {"state": "completed\0"})) == []


def test_the_expiry_filter(admin_client: Client) -> None:
    ahead = run_once("ahead")
    past = run_once("past", expires_at=timezone.now() - timedelta(seconds=1))
    assert shown(admin_client.get(LIST, {"expiry": "ahead"})) == [ahead]
    assert shown(admin_client.get(LIST, {"expiry": "past"})) == [past]


def test_a_search_finds_a_key_or_a_part_of_a_namespace(admin_client: Client) -> None:
    payment = run_once("charge:17", "shop.tasks.book_payment")
    receipt = run_once("charge:17", "shop.tasks.write_receipt")
    other = run_once("other", "shop.tasks.write_receipt")

    def found(term: str) -> list[IdempotencyKey]:
        return shown(admin_client.get(LIST, {"q": term}))

    assert found("charge:17") == [receipt, payment]
    assert found("charge:1") == []
    assert found("shop.tasks.book_payment") == [payment]
    assert found("WRITE") == [other, receipt]
    assert found("shop.tasks.") == [other, receipt, payment]
    assert found("nothing like it") == []


def test_other_lookups_are_refused(admin_client: Client) -> None:
    for lookup in ("key__contains", "result", "message_id", "created_at__year"):
        assert admin_client.get(LIST, {lookup: "1"}).status_code == 400, lookup


def test_a_key_links_to_its_message(admin_client: Client) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record.s("label"))
    key = run_once(message_id=str(message.pk))
    link = reverse("admin:outbox_outboxmessage_change", args=[message.pk])
    for url in (LIST, page_of(key)):
        assert f'<a href="{link}">{message.pk}</a>' in text_of(admin_client.get(url))
    assert admin_client.get(link).status_code == 200


def test_a_key_without_a_message_has_no_link(admin_client: Client) -> None:
    key = run_once()
    page = text_of(admin_client.get(page_of(key))).split("<main")[1]
    assert "/outboxmessage/" not in page
    field = page.split("field-message", 1)[1].split("</div>", 1)[0]
    assert '<div class="readonly">-' in field, field


def test_without_the_outbox_the_message_is_plain_text() -> None:
    site = AdminSite(name="without_the_outbox")
    assert IdempotencyKeyAdmin(IdempotencyKey, site).message(IdempotencyKey(message_id="m")) == "m"


def test_nobody_adds_changes_or_deletes_a_key(admin_client: Client) -> None:
    key = run_once()
    assert admin_client.get(LIST + "add/").status_code == 403
    assert admin_client.post(page_of(key), {"key": "another"}).status_code == 403
    assert admin_client.post(page_of(key, "delete"), {"post": "yes"}).status_code == 403
    assert "delete_selected" not in text_of(admin_client.get(LIST))
    assert IdempotencyKey.objects.get().key == "key"


def test_keys_need_the_view_permission(client: Client) -> None:
    key = run_once()
    client.force_login(User.objects.create_user("person", is_staff=True))
    for url in (LIST, page_of(key)):
        assert client.get(url).status_code == 403


def act(client: Client, action: str, *chosen: IdempotencyKey) -> list[str]:
    response = client.post(
        LIST, {"action": action, "_selected_action": [key.pk for key in chosen]}, follow=True
    )
    assert response.status_code == 200
    return [str(message) for message in response.context["messages"]]


UNKNOWN: dict[str, Any] = {"state": "outcome_unknown", "result": None, "expires_at": None}
FAILED: dict[str, Any] = {"state": "failed_terminal", "result": None, "error": "ValueError: no"}


def lease(ends_in: timedelta) -> dict[str, Any]:
    return {
        "state": "in_progress",
        "result": None,
        "finished_at": None,
        "token": uuid4(),
        "lease_expires_at": timezone.now() + ends_in,
    }


STALE, LIVE = timedelta(seconds=-5), timedelta(minutes=5)


@pytest.mark.parametrize(
    ("action", "state", "logged"),
    [
        ("resolve_completed", "completed", "Resolved as completed, with the result None;"),
        ("resolve_failed", "failed_terminal", "Resolved as failed for good;"),
        ("resolve_retry", "failed_retryable", "Resolved: it may be executed again;"),
    ],
)
def test_an_unknown_outcome_and_a_stale_lease_are_resolved(
    admin_client: Client, action: str, state: str, logged: str
) -> None:
    unknown = run_once("unknown", **UNKNOWN)
    stale = run_once("stale", **lease(STALE))
    others = [run_once("live", **lease(LIVE)), run_once("done"), run_once("failed", **FAILED)]
    before = [key.state for key in others]

    [told] = act(admin_client, action, unknown, stale, *others)
    assert told.startswith("2 keys have changed. 3 were skipped")
    for key in (unknown, stale, *others):
        key.refresh_from_db()
    assert (unknown.state, stale.state) == (state, state)
    assert [key.state for key in others] == before
    assert unknown.expires_at is not None
    entries = LogEntry.objects.order_by("pk")
    assert {(entry.object_id, entry.change_message) for entry in entries} == {
        (str(unknown.pk), f"{logged} it was outcome unknown."),
        (str(stale.pk), f"{logged} it was in progress."),
    }
    assert {entry.user.username for entry in entries} == {"admin"}


def test_what_failed_for_good_and_a_stale_lease_are_released(admin_client: Client) -> None:
    failed, stale = run_once("failed", **FAILED), run_once("stale", **lease(STALE))
    live, unknown = run_once("live", **lease(LIVE)), run_once("unknown", **UNKNOWN)
    [told] = act(admin_client, "release", failed, stale, live, unknown)
    assert told.startswith("2 keys have changed. 2 were skipped")
    for key in (failed, stale, live, unknown):
        key.refresh_from_db()
    assert (failed.state, stale.state) == ("failed_retryable", "failed_retryable")
    assert (live.state, unknown.state) == ("in_progress", "outcome_unknown")
    assert LogEntry.objects.count() == 2


@pytest.mark.parametrize(
    ("permission", "allowed"),
    [
        ("resolve", {"resolve_completed", "resolve_failed", "resolve_retry"}),
        ("release", {"release"}),
        ("view", set()),
    ],
)
def test_each_action_needs_its_permission(
    client: Client, permission: str, allowed: set[str]
) -> None:
    user = User.objects.create_user("person", is_staff=True)
    names = ["view_idempotencykey", f"{permission}_idempotencykey"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client.force_login(user)
    for action in ("resolve_completed", "resolve_failed", "resolve_retry", "release"):
        stale = run_once(action, **lease(STALE))
        act(client, action, stale)
        stale.refresh_from_db()
        assert (stale.state != "in_progress") == (action in allowed)


def test_a_stored_response_is_masked(admin_client: Client) -> None:
    stored = b'http1:{"status": 201}a secret in a response'
    key = run_once(result=stored)
    text = text_of(admin_client.get(page_of(key)))
    assert f"{len(stored)} bytes, not shown" in text
    assert "a secret" not in text + text_of(admin_client.get(LIST))


# Expired keys are the oldest ones: of 200,000, the first 5,000.
ROWS = """
INSERT INTO idempotency_idempotencykey (
    namespace, scope, key, fingerprint, state, result, message_id,
    created_at, finished_at, expires_at
)
SELECT
    CASE WHEN n % 5000 = 0 THEN 'shop.tasks.rare' ELSE 'shop.tasks.task_' || n % 7 END,
    '', 'key ' || n, '', 'completed', '\\x00', '', moment, moment, moment + interval '7 days'
FROM (
    SELECT n, now() - interval '7 days' + (n - 5000) * interval '3 seconds' AS moment
    FROM generate_series(1, 200000) AS n
) AS numbered
"""


def test_no_page_of_a_long_table_reads_all_of_it(admin_client: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute(ROWS)
        cursor.execute(f"ANALYZE {TABLE}")
    age = admin_client.get(LIST).context["cl"].list_display.index("age")
    for query in (
        {},
        {"p": 200},
        {"o": age},
        {"o": 0},
        {"expiry": "ahead"},
        {"expiry": "past"},
        *({"state": state} for state in IdempotencyKey.State.values),
        {"q": "key 100000"},
        {"q": "shop.tasks.rare"},
        {"q": "rar"},
        {"q": "nothing like it"},
    ):
        plans = plans_of(captured(admin_client, LIST, TABLE, query), analyze=True)
        assert_indexed(plans, query)
        assert_bounded(plans, query)

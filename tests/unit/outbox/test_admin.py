"""The messages' admin: what a person sees, may do, and what it costs the database."""

from __future__ import annotations

import pickle
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, current_app
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection, connections, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from idempotency.listing import BoundedPaginator
from outbox import moves, payload
from outbox.models import OutboxMessage
from tests.project.tasks import fail, record
from tests.unit.listing import assert_bounded, assert_indexed, captured, plans_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.django_db, pytest.mark.database]

LIST = "/admin/outbox/outboxmessage/"
PUBLISHED_AT = datetime(2026, 3, 5, 14, 30, tzinfo=UTC)
TIMES: dict[str, dict[str, Any]] = {
    "pending": {},
    "published": {"available_at": None, "published_at": PUBLISHED_AT},
    "executed": {
        "available_at": None,
        "published_at": PUBLISHED_AT,
        "executed_at": PUBLISHED_AT + timedelta(seconds=2),
    },
    "failed": {"available_at": None, "published_at": PUBLISHED_AT},
    "expired": {"available_at": None},
    "dead": {"available_at": None},
    "discarded": {"available_at": None},
}


def enqueue(status: str = "pending", signature: Any = None, key: str = "", **changes: Any) -> Any:
    """Write a message, and bring it to a state."""
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(signature or record.s("label"), key=key or None)
    OutboxMessage.objects.filter(pk=message.pk).update(
        **{"status": status, **TIMES[status], **changes}
    )
    message.refresh_from_db()
    return message


def page_of(message: OutboxMessage, page: str = "change") -> str:
    return reverse(f"admin:outbox_outboxmessage_{page}", args=[message.pk])


def text_of(response: Any) -> str:
    assert response.status_code == 200, response
    return str(response.content.decode())


def shown(response: Any) -> list[OutboxMessage]:
    return list(response.context["cl"].result_list)


def notes(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


@pytest.fixture
def client_with(client: Client) -> Callable[..., Client]:
    """Log a person in who may view messages and has the permissions named."""

    def log_in(*permissions: str) -> Client:
        user = User.objects.create_user("person", is_staff=True)
        names = ["view_outboxmessage", *permissions]
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        client.force_login(user)
        return client

    return log_in


# The list.


def test_the_list_shows_what_became_of_each_message(admin_client: Client) -> None:
    message = enqueue("executed", attempts=3)
    text = text_of(admin_client.get(LIST))
    for part in ("executed", "tests.project.tasks.record", str(message.pk), "2026-03-05"):
        assert part in text
    assert re.search(r'field-attempts">3<', text)


@pytest.mark.parametrize(
    ("due_in", "told"),
    [(timedelta(hours=5.5), "due in 5 h"), (timedelta(minutes=-7), "due for 7 min")],
)
def test_the_list_tells_when_a_message_is_due(
    admin_client: Client, due_in: timedelta, told: str
) -> None:
    enqueue(available_at=timezone.now() + due_in)
    assert told in text_of(admin_client.get(LIST))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"awaits_receipt": True, "available_at": timezone.now()}, "receipt outstanding<"),
        ({"awaits_receipt": True}, "receipt outstanding, stuck"),
        ({"awaits_receipt": False}, "not recorded"),
    ],
)
def test_the_list_tells_whether_a_receipt_is_due(
    admin_client: Client, changes: dict[str, Any], told: str
) -> None:
    enqueue("published", **changes)
    assert told in text_of(admin_client.get(LIST)).split("result_list")[1]


def test_the_list_neither_shows_nor_reads_payloads(admin_client: Client) -> None:
    enqueue("dead", record.s("a secret"), errors=[{"attempt": 1, "at": None, "error": "no route"}])
    statements = captured(admin_client, LIST, "outbox_outboxmessage")
    for column in ("body", "headers", "properties", "errors"):
        assert not any(f'"{column}"' in sql for sql in statements)
    text = text_of(admin_client.get(LIST))
    assert "a secret" not in text
    assert "no route" not in text


def test_the_list_costs_three_statements_whatever_its_length(admin_client: Client) -> None:
    enqueue()
    few = captured(admin_client, LIST, "outbox_outboxmessage")
    for _ in range(30):
        enqueue("executed", key=f"key {_}")
    many = captured(admin_client, LIST, "outbox_outboxmessage")
    assert len(few) == len(many) == 3  # the bounded count, the bounds of the dates, the page
    page = captured(admin_client, page_of(enqueue()), "outbox_outboxmessage")
    assert len(page) == 3  # the message, and whether it can be retried and discarded


def test_the_newest_message_comes_first_and_the_age_turns_it_round(admin_client: Client) -> None:
    old = enqueue(created_at=timezone.now() - timedelta(days=3))
    new = enqueue()
    assert shown(admin_client.get(LIST)) == [new, old]
    columns = admin_client.get(LIST).context["cl"].list_display
    assert shown(admin_client.get(LIST, {"o": columns.index("age")})) == [old, new]


@pytest.mark.parametrize("status", OutboxMessage.Status.values)
def test_the_state_filter(admin_client: Client, status: str) -> None:
    messages = {each: enqueue(each) for each in OutboxMessage.Status.values}
    assert shown(admin_client.get(LIST, {"state": status})) == [messages[status]]


@pytest.mark.parametrize("state", ["no state", "dead\0"])
def test_an_unknown_state_is_nobodys(admin_client: Client, state: str) -> None:
    enqueue("dead")
    assert shown(admin_client.get(LIST, {"state": state})) == []


def test_the_receipt_filter(admin_client: Client) -> None:
    outstanding = enqueue("published", awaits_receipt=True, available_at=timezone.now())
    stuck = enqueue("published", awaits_receipt=True)
    recorded = enqueue("executed", awaits_receipt=True)
    enqueue("published", awaits_receipt=False)
    enqueue("pending", awaits_receipt=True)
    assert shown(admin_client.get(LIST, {"receipt": "outstanding"})) == [stuck, outstanding]
    assert shown(admin_client.get(LIST, {"receipt": "stuck"})) == [stuck]
    assert shown(admin_client.get(LIST, {"receipt": "recorded"})) == [recorded]


def test_other_lookups_are_refused(admin_client: Client) -> None:
    for lookup in ("attempts", "body__contains", "status", "created_at__day", "task__icontains"):
        assert admin_client.get(LIST, {lookup: "1"}).status_code == 400, lookup


def test_a_search_finds_an_id_a_key_or_a_part_of_the_task(admin_client: Client) -> None:
    plain = enqueue()
    keyed = enqueue("executed", key="charge:17")
    other = enqueue(signature=fail.s("x"), created_at=timezone.now() - timedelta(days=1))

    def found(term: str, **filters: str) -> list[OutboxMessage]:
        return shown(admin_client.get(LIST, {"q": term, **filters}))

    assert found(str(plain.pk)) == [plain]
    assert found(f" {plain.pk.hex.upper()} ") == [plain]
    assert found("charge:17") == [keyed]
    assert found("charge:1") == []
    assert found("tests.project.tasks.fail") == [other]
    assert found("TASKS.FA") == [other]
    assert found("tests.project.") == [keyed, plain, other]
    assert found("tests.project.", state="executed") == [keyed]
    assert found("nothing like it") == []


def test_a_key_that_looks_like_an_id_is_found(admin_client: Client) -> None:
    keyed = enqueue(key="7d444840-9dc0-11d1-b245-5ffdce74fad2")
    assert shown(admin_client.get(LIST, {"q": keyed.key})) == [keyed]


# The drill-down.


def drill_down(client: Client, **chosen: int) -> tuple[str | None, list[str]]:
    """Return the link back and the choices, by their titles."""
    query = {f"created_at__{part}": value for part, value in chosen.items()}
    context = client.get(LIST, query).context["cl"].drill_down
    back = context["back"] and context["back"]["title"]
    return back, [choice["title"] for choice in context["choices"]]


@pytest.fixture
def dated(settings: Any) -> Callable[..., list[Any]]:
    settings.TIME_ZONE = "UTC"

    def at(*days: str) -> list[Any]:
        return [enqueue(created_at=datetime.fromisoformat(f"{day}T12:00:00+00:00")) for day in days]

    return at


def test_the_drill_down_goes_from_the_first_row_to_the_last(
    admin_client: Client, dated: Callable[..., list[Any]]
) -> None:
    dated("2024-11-30", "2026-02-02")
    assert drill_down(admin_client) == (None, ["2024", "2025", "2026"])
    assert drill_down(admin_client, year=2024) == ("All dates", ["November 2024", "December 2024"])
    assert drill_down(admin_client, year=2024, month=11) == ("2024", ["November 30"])
    assert drill_down(admin_client, year=2026, month=2) == ("2026", ["February 1", "February 2"])
    assert drill_down(admin_client, year=2026, month=2, day=2) == ("February 2026", ["February 2"])


def test_the_drill_down_starts_where_the_rows_differ(
    admin_client: Client, dated: Callable[..., list[Any]]
) -> None:
    dated("2026-02-02", "2026-02-04")
    assert drill_down(admin_client) == (None, ["February 2", "February 3", "February 4"])
    dated("2026-03-01")
    assert drill_down(admin_client) == (None, ["February 2026", "March 2026"])


def test_the_drill_down_narrows_the_list_and_keeps_the_filter(
    admin_client: Client, dated: Callable[..., list[Any]]
) -> None:
    _, second, third = dated("2026-02-02", "2026-03-03", "2026-03-04")
    response = admin_client.get(LIST, {"state": "pending"})
    links = [choice["link"] for choice in response.context["cl"].drill_down["choices"]]
    response = admin_client.get(LIST + links[1])
    assert shown(response) == [third, second]
    links = [choice["link"] for choice in response.context["cl"].drill_down["choices"]]
    assert shown(admin_client.get(LIST + links[2])) == [second]  # March 3
    assert "state=pending" in links[2]


def test_the_drill_down_of_an_empty_table_is_not_there(admin_client: Client) -> None:
    response = admin_client.get(LIST)
    assert not response.context["cl"].drill_down["show"]
    assert "toplinks" not in text_of(response)


def test_a_date_that_does_not_exist_leads_back_to_the_list(admin_client: Client) -> None:
    last_day = "?created_at__year=9999&created_at__month=12&created_at__day=31"
    no_month = "?created_at__year=2026&created_at__month=13"
    for query in ("?created_at__year=x", no_month, "?created_at__year=9999", last_day):
        assert admin_client.get(LIST + query).status_code == 302


# The bound.


def test_the_list_ends_after_a_bound_and_says_so(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedPaginator, "BOUND", 60)
    for number in range(60):
        enqueue(key=f"key {number}")
    exact = admin_client.get(LIST)
    assert exact.context["cl"].result_count == 60
    assert "There are more" not in text_of(exact)
    enqueue()
    more = admin_client.get(LIST)
    assert more.context["cl"].result_count == 60
    assert "There are more: the list ends after 60." in text_of(more)
    assert len(shown(admin_client.get(LIST, {"p": 2}))) == 10
    assert admin_client.get(LIST, {"p": 3}).status_code == 302


ROWS = """
INSERT INTO outbox_outboxmessage (
    id, task, status, exchange, routing_key, queue, headers, properties, body, key,
    available_at, expires_at, awaits_receipt, attempts, errors, created_at, published_at,
    executed_at
)
SELECT
    gen_random_uuid(),
    CASE WHEN n % 5000 = 0 THEN 'shop.tasks.rare' ELSE 'shop.tasks.task_' || n % 7 END,
    status, '', 'celery', 'celery', '{{}}', '{{}}', repeat('x', 500)::bytea,
    CASE WHEN n % 10 = 0 THEN 'key ' || n ELSE '' END,
    CASE status WHEN 'pending' THEN created_at END,
    NULL, true, 0, '[]', created_at,
    CASE WHEN status IN ('published', 'executed', 'failed') THEN created_at END,
    CASE status WHEN 'executed' THEN created_at END
FROM (
    SELECT n,
        now() - n * interval '20 seconds' AS created_at,
        CASE
            WHEN n < 40 THEN 'pending'
            WHEN n < 80 THEN 'published'
            WHEN n % 1000 = 0 THEN 'dead'
            WHEN n > {rows} - 30 THEN 'failed'
            ELSE 'executed'
        END AS status
    FROM generate_series(1, {rows}) AS n
) AS numbered
"""


def test_no_page_of_a_long_table_reads_all_of_it(admin_client: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute(ROWS.format(rows=200_000))
        cursor.execute("ANALYZE outbox_outboxmessage")
    age = admin_client.get(LIST).context["cl"].list_display.index("age")
    now = timezone.localtime()
    month = {"created_at__year": now.year, "created_at__month": now.month}
    one = OutboxMessage.objects.order_by("created_at")[0]
    pages: list[dict[str, Any]] = [
        {},
        {"p": 200},
        {"o": age},
        {"o": f"-{age}", "p": 200},
        {"o": age + 1},
        *({"state": status} for status in OutboxMessage.Status.values),
        {"receipt": "outstanding"},
        {"receipt": "stuck"},
        {"receipt": "recorded"},
        month,
        {**month, "created_at__day": now.day},
        {**month, "state": "executed"},
        {"q": str(one.pk)},
        {"q": "key 100000"},
        {"q": "shop.tasks.rare"},
        {"q": "rar"},
        {"q": "no such task"},
    ]
    pairs: list[dict[str, Any]] = [
        {"q": "shop.tasks.task_3"},
        *({"q": "shop.tasks.task_3", "state": state} for state in ("executed", "dead")),
        *({"q": "rar", "state": state} for state in ("executed", "dead")),
        {"q": "shop.", "state": "failed"},
    ]
    for query in (*pages, *pairs):
        statements = captured(admin_client, LIST, "outbox_outboxmessage", query)
        assert_indexed(plans_of(statements), query)
        if query in pages:
            assert_bounded(plans_of(statements, analyze=True), query)


# The page of one message.


def test_the_page_shows_the_arguments_readably(admin_client: Client) -> None:
    amount, at = Decimal("12.50"), datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    signature = current_app.signature(
        "shop.send", args=("tea & <b>pots</b>",), kwargs={"amount": amount, "at": at}
    )
    text = text_of(admin_client.get(page_of(enqueue(signature=signature))))
    assert "&#x27;tea &amp; &lt;b&gt;pots&lt;/b&gt;&#x27;" in text
    assert "<th>amount</th><td><pre>Decimal(&#x27;12.50&#x27;)</pre></td>" in text
    assert "datetime.datetime(2026, 1, 2, 3, 4" in text


def test_the_page_shows_what_follows_the_task(admin_client: Client) -> None:
    message = enqueue(signature=chain(record.si("first"), fail.si("second"), record.si("third")))
    text = text_of(admin_client.get(page_of(message)))
    assert "then: tests.project.tasks.fail, tests.project.tasks.record" in text
    message = enqueue(signature=record.s("x").set(link=fail.si("y"), link_error=record.si("z")))
    text = text_of(admin_client.get(page_of(message)))
    assert "tests.project.tasks.fail, when it succeeds" in text
    assert "tests.project.tasks.record, when it fails" in text


class Exploit:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickled_body_is_never_unpickled(admin_client: Client, tmp_path: Path) -> None:
    trap = tmp_path / "code was run"
    message = enqueue(signature=record.s("harmless"))
    message.properties["content_type"] = "application/x-python-serialize"
    message.body = pickle.dumps(((Exploit(trap),), {}, {}))
    message.save()
    text = text_of(admin_client.get(page_of(message)))
    assert "The body is application/x-python-serialize, which could run code" in text
    assert "(&#x27;harmless&#x27;,)" in text  # what Celery noted in argsrepr
    assert not trap.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"body": b"\xff\x00 no json"}, "The body cannot be read: "),
        ({"body": b'{"args": 1}'}, "The body cannot be read: KeyError"),
        ({"headers": {"compression": "application/x-gzip"}}, "The body cannot be read: "),
        ({"properties": {}}, "The body is None, which could run code"),
        ({"body": b" " * (payload.LARGEST_BODY + 1)}, "The body is large: 262,145 bytes."),
    ],
)
def test_a_body_that_cannot_be_read_does_not_break_the_page(
    admin_client: Client, changes: dict[str, Any], told: str
) -> None:
    message = enqueue()
    OutboxMessage.objects.filter(pk=message.pk).update(**changes)
    assert told in text_of(admin_client.get(page_of(message)))


def test_a_long_argument_is_cut(admin_client: Client) -> None:
    text = text_of(admin_client.get(page_of(enqueue(signature=record.s("x" * 20_000)))))
    assert "x …</pre>" in text


def test_the_page_shows_headers_properties_and_the_target(admin_client: Client) -> None:
    signature = record.s("x").set(headers={"tenant": "zoë"}, priority=7, queue="celery")
    text = text_of(admin_client.get(page_of(enqueue(signature=signature))))
    assert "&quot;tenant&quot;: &quot;zoë&quot;" in text
    assert "&quot;priority&quot;: 7" in text
    assert "<th>queue</th><td><pre>celery</pre></td>" in text
    assert "bytes of application/json" in text


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_lone_surrogate_does_not_break_the_page(admin_client: Client, serializer: str) -> None:
    """As in the name of a file whose bytes are no UTF-8."""
    signature = record.s("caf\udce9").set(headers={"file": "\udce9"}, serializer=serializer)
    text = text_of(admin_client.get(page_of(enqueue(signature=signature))))
    assert "&#x27;caf\\udce9&#x27;" in text
    assert "&quot;file&quot;: &quot;\\udce9&quot;" in text


def test_the_page_shows_the_error_of_each_attempt(admin_client: Client) -> None:
    errors = [
        {"at": "2026-03-05T14:30:00+00:00", "attempt": 1, "error": "NOT_FOUND - no exchange <x>"},
        {"at": "2026-03-05T14:31:00+00:00", "attempt": 2, "error": "still not"},
    ]
    message = enqueue("dead", errors=errors, attempts=2)
    text = text_of(admin_client.get(page_of(message)))
    assert "<pre>NOT_FOUND - no exchange &lt;x&gt;</pre>" in text
    assert text.index("still not") < text.index("NOT_FOUND")
    assert re.search(r"<td>2</td><td class=\"nowrap\"><time [^>]*2026-03-05T14:31:00", text)


def test_pages_of_a_project_without_time_zones(admin_client: Client, settings: Any) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "America/New_York"
    errors = [{"at": "2026-03-05T14:30:00+00:00", "attempt": 1, "error": "x"}]
    message = enqueue("dead", errors=errors, attempts=1)
    enqueue(available_at=timezone.now() + timedelta(hours=5.5))
    assert "due in 5 h" in text_of(admin_client.get(LIST))
    assert ">2026-03-05 09:30:00</time>" in text_of(admin_client.get(page_of(message)))


def test_nobody_adds_changes_or_deletes_a_message(admin_client: Client) -> None:
    message = enqueue()
    assert admin_client.get(LIST + "add/").status_code == 403
    assert admin_client.post(page_of(message), {"task": "another"}).status_code == 403
    assert admin_client.post(page_of(message, "delete"), {"post": "yes"}).status_code == 403
    selected = {"action": "delete_selected", "_selected_action": [message.pk], "post": "yes"}
    admin_client.post(LIST, selected)
    message.refresh_from_db()
    assert message.task == "tests.project.tasks.record"
    assert 'name="_save"' not in text_of(admin_client.get(page_of(message)))


def test_payloads_need_the_view_permission(client: Client) -> None:
    message = enqueue()
    user = User.objects.create_user("person", is_staff=True)
    permissions = Permission.objects.filter(
        codename__in=["retry_outboxmessage", "discard_outboxmessage"]
    )
    user.user_permissions.set(permissions)
    client.force_login(user)
    for url in (LIST, page_of(message), page_of(message, "retry"), page_of(message, "discard")):
        assert client.get(url).status_code == 403, url
        assert client.post(url).status_code == 403, url


def test_an_unknown_message_leads_to_the_index(admin_client: Client) -> None:
    for id in ("7d444840-9dc0-11d1-b245-5ffdce74fad2", "no-uuid"):
        response = admin_client.get(f"{LIST}{id}/change/", follow=True)
        assert f"ID “{id}” doesn" in notes(response)[0]


# Retry and discard.


def act(client: Client, action: str, *chosen: OutboxMessage, **data: Any) -> Any:
    selected = {"action": action, "_selected_action": [str(message.pk) for message in chosen]}
    return client.post(LIST, {**selected, **data}, follow=True)


def states(*chosen: OutboxMessage) -> list[str]:
    found = OutboxMessage.objects.in_bulk([message.pk for message in chosen])
    return [found[message.pk].status for message in chosen]


def test_retry_moves_what_it_can_and_tells_the_rest(
    client_with: Callable[..., Client],
) -> None:
    client = client_with("retry_outboxmessage")
    chosen = [enqueue(status, attempts=4) for status in OutboxMessage.Status.values]
    response = act(client, "retry", *chosen)
    (told,) = notes(response)
    assert told == (
        "3 messages are pending again. "
        "4 were skipped: 1 discarded, 1 executed, 1 pending, 1 published."
    )
    moved = [message for message in chosen if message.status in {"failed", "expired", "dead"}]
    assert states(*moved) == ["pending"] * 3
    assert states(*(m for m in chosen if m not in moved)) == [
        "pending",
        "published",
        "executed",
        "discarded",
    ]
    log = {entry.object_id: entry for entry in LogEntry.objects.all()}
    assert set(log) == {str(message.pk) for message in moved}
    for message in moved:
        entry = log[str(message.pk)]
        assert entry.change_message == f"Retried; it was {message.status}."
        assert entry.user.username == "person"
        assert entry.object_repr == str(message)
        assert entry.change_message in text_of(client.get(page_of(message, "history")))


def test_discard_asks_first_then_moves_what_it_can(client_with: Callable[..., Client]) -> None:
    client = client_with("discard_outboxmessage")
    chosen = [enqueue(status) for status in OutboxMessage.Status.values]
    before = states(*chosen)
    asked = text_of(act(client, "discard", *chosen))
    assert "3 messages will be discarded." in asked
    assert f'<a href="{LIST}">Outbox messages</a>' in asked, "the way back"
    assert "<li>1 executed</li>" in asked  # among those that are skipped
    assert states(*chosen) == before
    response = act(client, "discard", *chosen, confirmed="yes")
    assert notes(response) == [
        "3 messages are discarded. 4 were skipped: 1 discarded, 1 executed, 1 expired, 1 published."
    ]
    moved = [message for message in chosen if message.status in {"pending", "failed", "dead"}]
    assert states(*moved) == ["discarded"] * 3
    assert sorted(LogEntry.objects.values_list("change_message", flat=True)) == [
        "Discarded; it was dead.",
        "Discarded; it was failed.",
        "Discarded; it was pending.",
    ]


def test_one_that_moves_is_told_in_the_singular(client_with: Callable[..., Client]) -> None:
    client = client_with("retry_outboxmessage", "discard_outboxmessage")
    dead = enqueue("dead")
    assert notes(act(client, "retry", dead)) == ["1 message is pending again."]
    assert notes(act(client, "retry", dead)) == [
        "0 messages are pending again. 1 was skipped: 1 pending."
    ]


def test_nothing_to_discard_offers_no_button(client_with: Callable[..., Client]) -> None:
    client = client_with("discard_outboxmessage")
    asked = text_of(act(client, "discard", enqueue("executed")))
    assert "None of these messages can be discarded" in asked
    assert "Yes, discard" not in asked


def test_without_the_permission_there_is_no_action_and_no_button(
    client_with: Callable[..., Client],
) -> None:
    client = client_with()
    message = enqueue("dead")
    text = text_of(client.get(page_of(message)))
    assert page_of(message, "retry") not in text
    assert page_of(message, "discard") not in text
    assert 'name="action"' not in text_of(client.get(LIST))
    for action in ("retry", "discard"):
        act(client, action, message, confirmed="yes")
        assert client.post(page_of(message, action)).status_code == 403
    assert states(message) == ["dead"]


@pytest.mark.parametrize(
    ("status", "buttons"),
    [
        ("pending", ["discard"]),
        ("published", []),
        ("executed", []),
        ("failed", ["retry", "discard"]),
        ("expired", ["retry"]),
        ("dead", ["retry", "discard"]),
        ("discarded", []),
    ],
)
def test_the_page_has_a_button_for_what_is_possible(
    admin_client: Client, status: str, buttons: list[str]
) -> None:
    message = enqueue(status)
    text = text_of(admin_client.get(page_of(message)))
    assert [name for name in ("retry", "discard") if page_of(message, name) in text] == buttons


def test_the_retry_button(admin_client: Client) -> None:
    message = enqueue("dead")
    assert admin_client.get(page_of(message, "retry")).status_code == 405
    response = admin_client.post(page_of(message, "retry"), follow=True)
    assert response.redirect_chain == [(page_of(message), 302)]
    assert notes(response) == ["1 message is pending again."]
    assert states(message) == ["pending"]
    assert LogEntry.objects.get().object_id == str(message.pk)


def test_a_stuck_message_can_be_retried(admin_client: Client) -> None:
    message = enqueue("published", awaits_receipt=True, redeliveries=5)
    text = text_of(admin_client.get(page_of(message)))
    assert "receipt outstanding, stuck" in text
    admin_client.post(page_of(message, "retry"))
    assert states(message) == ["pending"]


def test_a_stuck_message_can_be_discarded(admin_client: Client) -> None:
    message = enqueue("published", awaits_receipt=True, redeliveries=5)
    asked = text_of(admin_client.get(page_of(message, "discard")))
    assert "1 message will be discarded." in asked
    admin_client.post(page_of(message, "discard"))
    assert states(message) == ["discarded"]


def test_the_discard_button(admin_client: Client) -> None:
    message = enqueue("dead")
    asked = text_of(admin_client.get(page_of(message, "discard")))
    assert "1 message will be discarded." in asked
    assert states(message) == ["dead"]
    response = admin_client.post(page_of(message, "discard"), follow=True)
    assert response.redirect_chain == [(page_of(message), 302)]
    assert states(message) == ["discarded"]
    assert LogEntry.objects.get().change_message == "Discarded; it was dead."


def test_all_of_a_filtered_list_move_up_to_a_bound(
    client_with: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "MOST", 2)
    client = client_with("retry_outboxmessage")
    dead = [enqueue("dead", created_at=timezone.now() - timedelta(days=d)) for d in range(3)]
    failed = enqueue("failed")
    chosen = {"action": "retry", "select_across": "1", "_selected_action": [str(dead[0].pk)]}
    client.post(LIST + "?state=dead", chosen)
    assert states(*dead, failed) == ["pending", "pending", "dead", "failed"]


@pytest.mark.django_db(transaction=True)
def test_a_message_that_a_relay_holds_is_skipped(admin_client: Client) -> None:
    held, free = enqueue(), enqueue()
    relay = connections.create_connection("default")
    try:
        with relay.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("SELECT 1 FROM outbox_outboxmessage WHERE id = %s FOR UPDATE", [held.pk])
        response = act(admin_client, "discard", held, free, confirmed="yes")
    finally:
        relay.close()
    assert notes(response) == [
        "1 message is discarded. 1 was skipped: 1 held by a relay at this moment."
    ]
    assert states(held, free) == ["pending", "discarded"]
    assert LogEntry.objects.get().object_id == str(free.pk)


# Ordering keys


def in_line(status: str = "pending", **changes: Any) -> tuple[OutboxMessage, OutboxMessage]:
    """The first of a key, in a state, and the one that waits for it."""
    with transaction.atomic():
        first, second = OutboxMessage.objects.enqueue_many(
            [record.s("1"), fail.s("2")], ordering_keys=["account:7", "account:7"]
        )
    OutboxMessage.objects.filter(pk=first.pk).update(
        **{"status": status, **TIMES[status], **changes}
    )
    return first, second


@pytest.mark.parametrize(
    ("status", "told"),
    [("dead", "dead"), ("failed", "failed"), ("published", "receipt outstanding, stuck")],
)
def test_a_message_that_waits_says_for_which(admin_client: Client, status: str, told: str) -> None:
    first, second = in_line(status, awaits_receipt=True)
    text = text_of(admin_client.get(page_of(second)))
    assert "account:7, number 2" in text
    assert f'waits for <a href="{page_of(first)}">{first}</a> ({told})' in text
    assert "waits for" not in text_of(admin_client.get(page_of(first)))
    listed = text_of(admin_client.get(LIST))
    assert listed.count("waits for its turn") == 1


def test_a_message_without_a_key_has_no_place(admin_client: Client) -> None:
    assert '<span class="quiet">in none</span>' in text_of(admin_client.get(page_of(enqueue())))


def test_a_search_finds_the_messages_of_an_ordering_key(admin_client: Client) -> None:
    rows = in_line()
    enqueue()
    assert set(shown(admin_client.get(LIST, {"q": " account:7 "}))) == set(rows)
    assert shown(admin_client.get(LIST, {"q": "account:"})) == []


def test_the_button_discards_the_first_and_the_next_has_its_turn(admin_client: Client) -> None:
    first, second = in_line("dead")
    admin_client.post(page_of(first, "discard"), {"confirmed": "yes"})
    second.refresh_from_db()
    assert not second.blocked


def test_the_button_retries_the_first_and_the_others_wait(admin_client: Client) -> None:
    first, second = in_line("dead")
    admin_client.post(page_of(first, "retry"))
    for row in (first, second):
        row.refresh_from_db()
    assert (first.status, first.blocked, second.blocked) == ("pending", False, True)

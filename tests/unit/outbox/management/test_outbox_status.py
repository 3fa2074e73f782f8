"""``manage.py outbox_status``: for people, for programs, and its exit status for alerts."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.models.functions import Now

from outbox.management.commands import outbox_status
from outbox.status_querysets import Status, XminHolder, status_of
from tests.project.tasks import record_once
from tests.unit.outbox.rows import message

pytestmark = pytest.mark.django_db(databases=["default", "other"])

MINUTE = timedelta(minutes=1)


def told(*arguments: str) -> str:
    output = io.StringIO()
    call_command("outbox_status", *arguments, stdout=output)
    return output.getvalue()


def alert(*arguments: str) -> str:
    with pytest.raises(CommandError) as caught:
        told(*arguments)
    assert caught.value.returncode == 1
    return str(caught.value)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let vacuum be held back."""

    def hold(*holder: Any) -> None:
        def looked(using: str) -> Status:
            found = {name: getattr(status_of(using), name) for name in Status.__slots__}
            return Status(**{**found, "xmin_holder": XminHolder(*holder) if holder else None})

        monkeypatch.setattr(outbox_status, "status_of", looked)

    return hold


def test_an_outbox_in_good_order_is_no_alert(held: Any) -> None:
    held()
    message("executed")
    message(available_at=Now() + MINUTE)
    assert told().splitlines() == [
        "database    default",
        "pending     1",
        "due         0, the oldest for 0.0 s",
        "dead        0",
        "failed      0",
        "stuck       0",
        "blocked     0",
        "xmin        not held",
    ]


def test_errors_are_shown_under_their_state(held: Any) -> None:
    held("session", "12 app", 4.2, 99)
    for status in ("dead", "failed", "failed"):
        message(status, errors=[{"at": "", "attempt": 1, "error": f"why {status}"}])
    lines = told("--max-dead", "3").splitlines()
    assert lines[3:] == [
        "dead        1",
        "            1 of tests.project.tasks.record: why dead",
        "failed      2",
        "            2 of tests.project.tasks.record: why failed",
        "stuck       0",
        "blocked     0",
        "xmin        held by session 12 app, for 4 s, 99 transactions",
    ]


def test_json_is_one_line_with_all_of_it() -> None:
    message("dead", errors=[{"at": "", "attempt": 1, "error": "why"}])
    output = io.StringIO()
    with pytest.raises(CommandError):
        call_command("outbox_status", "--json", "--database", "default", stdout=output)
    (line,) = output.getvalue().splitlines()
    found = json.loads(line)
    assert set(found) == {*Status.__slots__, "alerts"}
    assert (found["database"], found["dead"]) == ("default", 1)
    assert found["errors"] == [
        {"status": "dead", "task": "tests.project.tasks.record", "error": "why", "count": 1}
    ]
    (only,) = found["alerts"]
    assert only.startswith("1 messages wait for somebody")


def test_a_message_that_has_been_due_for_long_is_an_alert() -> None:
    message(available_at=Now() - 2 * MINUTE)
    assert alert().startswith("The oldest due message has waited for 120 s")
    told("--max-lag", "180")


@pytest.mark.parametrize("status", ["dead", "failed", "published"])
def test_what_waits_for_somebody_is_an_alert(status: str) -> None:
    message(status, record_once.s("x"))
    assert alert().startswith("1 messages wait for somebody to retry or discard them: ")
    told("--max-dead", "1")


@pytest.mark.parametrize(
    ("holder", "beyond"),
    [
        (("session", "12 app (idle in transaction)", 3601.0, 5), True),
        (("session", "12 app (idle in transaction)", 3599.0, 5_000_000), False),
        (("replication slot", "standby", None, 5), False),
    ],
)
def test_a_transaction_that_is_open_for_hours_is_an_alert(
    held: Any, holder: Any, beyond: bool
) -> None:
    held(*holder)
    if not beyond:
        told()
    else:
        assert alert() == (
            "The session 12 app (idle in transaction) has kept vacuum from dead rows for 3601 s: "
            "end it."
        )
        told("--max-xmin-age", "7200")


def test_all_alerts_are_told_at_once() -> None:
    message(available_at=Now() - 2 * MINUTE)
    message("dead")
    text = alert()
    assert "oldest due" in text
    assert "1 dead" in text


def test_it_looks_at_the_database_that_it_is_told() -> None:
    message("dead", using="other")
    told()
    assert "1 dead" in alert("--database", "other")
    with pytest.raises(CommandError, match="There is no database 'nowhere'") as caught:
        told("--database", "nowhere")
    assert caught.value.returncode == 2


def test_it_looks_at_each_database_that_it_is_told() -> None:
    both = ["--database", "default", "--database", "other"]
    assert [line.split()[-1] for line in told(*both).splitlines() if "database" in line] == [
        "default",
        "other",
    ]
    message("dead", using="other")
    assert alert(*both).startswith("other: 1 messages wait for somebody")
    message("dead")
    output = io.StringIO()
    with pytest.raises(CommandError, match=r"^default: 1 messages .*\nother: 1 messages "):
        call_command("outbox_status", "--json", *both, stdout=output)
    assert [json.loads(line)["dead"] for line in output.getvalue().splitlines()] == [1, 1]


def test_a_database_that_is_away_hides_no_other() -> None:
    message("dead", using="other")
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE outbox_outboxmessage RENAME TO elsewhere")
        with pytest.raises(CommandError, match=r"(?s)^default: .*migrate\.\nother: 1 ") as caught:
            told("--database", "default", "--database", "other")
        transaction.set_rollback(True)
    assert caught.value.returncode == 2


@pytest.mark.parametrize("option", ["--max-lag", "--max-dead", "--max-xmin-age"])
@pytest.mark.parametrize("bound", ["nan", "inf", "-1"])
def test_a_bound_that_would_tell_nothing_is_refused(option: str, bound: str) -> None:
    told(option, "0")
    with pytest.raises(CommandError, match=f"{option}.*(must be a finite|invalid int)") as caught:
        told(option, bound)
    if option != "--max-dead" or bound == "-1":  # a whole number is argparse's to ask for
        assert caught.value.returncode == 2


def test_not_to_have_looked_is_a_status_of_its_own() -> None:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE outbox_outboxmessage RENAME TO elsewhere")
        with pytest.raises(CommandError, match=r"Run manage\.py migrate") as caught:
            told()
        transaction.set_rollback(True)
    assert caught.value.returncode == 2


def test_keys_that_wait_for_somebody_are_shown(held: Any) -> None:
    held()
    first = message("dead", ordering_key="account:7")
    message(ordering_key="account:7")
    assert told("--max-dead", "1").splitlines()[-3:-1] == [
        "blocked     1",
        f"            account:7, by {first.pk}, which is dead",
    ]

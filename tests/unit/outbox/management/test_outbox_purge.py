"""``manage.py outbox_purge`` and the task for beat: what each is told, and how much it does."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from outbox.models import OrderingKey, OutboxMessage
from outbox.tasks import purge
from tests.unit.outbox.rows import message

pytestmark = pytest.mark.django_db(databases=["default", "other"])

messages = OutboxMessage.objects
DAY = timedelta(days=1)
OLD: Any = Now() - 31 * DAY


def old(status: str = "executed", using: str = "default") -> OutboxMessage:
    row = message(status, using=using)
    changes = {"published_at": OLD} if row.published_at else {}
    changes |= {"executed_at": OLD} if row.executed_at else {}
    messages.using(using).filter(pk=row.pk).update(created_at=OLD, **changes)
    return row


def purged(*arguments: str) -> str:
    output = io.StringIO()
    call_command("outbox_purge", *arguments, stdout=output)
    return output.getvalue()


def test_it_deletes_in_batches_what_is_over() -> None:
    for _ in range(5):
        old()
    old("dead")
    with CaptureQueriesContext(connection) as queries:
        assert purged("--batch-size", "2") == "deleted 5\n"
    deletes = [query["sql"] for query in queries if query["sql"].startswith("DELETE")]
    assert len(deletes) == 3
    assert messages.get().status == "dead"


def test_the_retention_is_a_setting(settings: Any) -> None:
    row = old()
    settings.OUTBOX_RETENTION = 32 * DAY
    assert purged() == "deleted 0\n"
    assert purge() == 0
    settings.OUTBOX_RETENTION = 30 * DAY
    assert purged() == "deleted 1\n"
    assert not messages.filter(pk=row.pk).exists()


def test_each_state_may_have_an_age_of_its_own() -> None:
    for status in ("executed", "discarded", "dead", "failed"):
        old(status)
    assert purged("--state", "dead", "--state", "failed", "--days", "40") == "deleted 0\n"
    assert purged("--state", "dead", "--state", "failed", "--days", "30.5") == "deleted 2\n"
    assert purged("--state", "discarded") == "deleted 1\n"
    assert messages.get().status == "executed"


def test_it_purges_the_database_that_it_is_told() -> None:
    old()
    old(using="other")
    assert purged("--database", "other") == "deleted 1\n"
    assert messages.count() == 1


def test_several_databases_one_after_the_other() -> None:
    old(using="default")
    old(using="other")
    old(using="other")
    arguments = ["--database", "other", "--database", "default", "--database", "other"]
    assert purged(*arguments) == "other: deleted 2\ndefault: deleted 1\n"


def test_a_database_that_is_away_does_not_keep_the_next_from_its_turn() -> None:
    old(using="other")
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE outbox_outboxmessage RENAME TO elsewhere")
        with pytest.raises(CommandError, match=r"default: .* Run manage\.py migrate\.$"):
            purged("--database", "default", "--database", "other")
        transaction.set_rollback(True)
    assert not messages.using("other").exists()


def test_code_may_name_one_database() -> None:
    old(using="other")
    call_command("outbox_purge", database="other", stdout=io.StringIO())
    assert not messages.using("other").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--database", "nowhere"], "There is no database 'nowhere' in DATABASES: default, other."),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0."),
        (["--days", "0"], "--days must be greater than zero and sensible, not 0."),
        (["--days", "-1.5"], "--days must be greater than zero and sensible, not -1.5."),
        (["--days", "nan"], "--days must be greater than zero and sensible, not nan."),
        (["--days", "1e12"], "--days must be greater than zero and sensible, not 1e+12."),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], told: str) -> None:
    with pytest.raises(CommandError) as caught:
        purged(*arguments)
    assert str(caught.value) == told


def test_a_pending_message_cannot_be_asked_for() -> None:
    with pytest.raises(CommandError, match="invalid choice: 'pending'"):
        purged("--state", "pending")


def test_the_task_purges_a_bounded_number_of_batches() -> None:
    for _ in range(5):
        old()
    assert purge.name == "outbox.purge"
    assert purge(batch_size=2, max_batches=2) == 4
    assert purge(batch_size=2) == 1
    assert purge() == 0


def test_the_task_is_told_of_states_ages_and_databases() -> None:
    old("dead")
    old(using="other")
    assert purge(states=["dead"], older_than=(32 * DAY).total_seconds()) == 0
    assert purge(states=["dead"], older_than=(30 * DAY).total_seconds()) == 1
    assert purge(using="other") == 1
    with pytest.raises(ValueError, match="A pending message must be discarded first"):
        purge(states=["pending"])


@pytest.mark.parametrize("task", [False, True])
def test_ordering_keys_without_a_message_go_with_it(task: bool) -> None:
    for key in ("gone", "kept"):
        row = message("executed", ordering_key=key)
        messages.filter(pk=row.pk).update(
            created_at=OLD, **({"published_at": OLD, "executed_at": OLD} if key == "gone" else {})
        )
    messages.filter(ordering_key="kept").update(status="discarded", executed_at=None)
    messages.filter(ordering_key="kept").update(created_at=Now())
    if task:
        assert purge() == 1
    else:
        assert purged() == "deleted 1\ndeleted 1 ordering keys without a message\n"
    assert OrderingKey.objects.get().key == "kept"

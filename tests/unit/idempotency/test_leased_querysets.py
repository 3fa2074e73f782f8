"""The words of those who operate: resolve, release, forget, purge."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from idempotency.exceptions import ImproperlyUsed
from idempotency.execution import Operation
from idempotency.models import IdempotencyKey
from idempotency.stores import Terms
from idempotency.tasks import purge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_django import Settings

pytestmark = pytest.mark.django_db

State = IdempotencyKey.State
keys = IdempotencyKey.objects

STATES = (*State, "stale")


def make(key: str, state: str, *, age: timedelta = timedelta(0)) -> IdempotencyKey:
    """A key in a state, all of whose times are ``age`` ago."""
    live = state in (State.IN_PROGRESS, "stale")
    lease = timedelta(minutes=1 if state == State.IN_PROGRESS else -1)
    made: IdempotencyKey = keys.create(
        namespace="tests",
        key=key,
        state=State.IN_PROGRESS if live else state,
        result=b"json1:1" if state == State.COMPLETED else None,
        token=uuid4(),
        checkpoint=b"steps",
        lease_expires_at=Now() + lease if live else None,
        created_at=Now() - age,
        finished_at=None if live else Now() - age,
        expires_at=(
            None if state == State.OUTCOME_UNKNOWN else Now() + lease + timedelta(hours=1) - age
        ),
    )
    return made


def make_all() -> None:
    for state in STATES:
        make(state, state)


def states() -> dict[str, str]:
    return dict(keys.values_list("key", "state"))


ALL = {state: "in_progress" if state == "stale" else state for state in STATES}


@pytest.mark.parametrize(
    ("how", "state"),
    [
        ({"completed": 1}, State.COMPLETED),
        ({"completed": None}, State.COMPLETED),
        ({"failed": ValueError("why")}, State.FAILED_TERMINAL),
        ({"retry": True}, State.FAILED_RETRYABLE),
    ],
)
def test_resolve_ends_what_is_unknown_or_stale_and_nothing_else(
    how: dict[str, Any], state: str
) -> None:
    make_all()
    assert keys.resolve(**how) == 2
    assert states() == {**ALL, State.OUTCOME_UNKNOWN: state, "stale": state}


def test_resolve_keeps_the_steps_of_what_is_tried_again() -> None:
    make("k", State.OUTCOME_UNKNOWN)
    keys.resolve(retry=True)
    assert bytes(keys.get().checkpoint or b"") == b"steps"


def test_resolve_remembers_as_long_as_any_key(settings: Settings) -> None:
    settings.IDEMPOTENCY_TTL = timedelta(days=3)
    make("k", State.OUTCOME_UNKNOWN)
    keys.resolve(failed=ValueError("why"))
    record = keys.get()
    assert record.error == "builtins.ValueError: why"
    assert record.expires_at is not None
    assert record.finished_at is not None
    assert record.expires_at - record.finished_at == timedelta(days=3)


@pytest.mark.parametrize("how", [{}, {"completed": 1, "retry": True}, {"retry": False}])
def test_resolve_takes_one_answer(how: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyUsed, match="takes one of"):
        keys.resolve(**how)


def test_release_lets_failures_and_stale_leases_run_again() -> None:
    make_all()
    assert keys.release() == 2
    assert states() == {
        **ALL,
        State.FAILED_TERMINAL: State.FAILED_RETRYABLE,
        "stale": State.FAILED_RETRYABLE,
    }


def test_forget_deletes_all_but_a_live_lease() -> None:
    make_all()
    assert keys.forget() == len(STATES) - 1
    assert states() == {State.IN_PROGRESS: State.IN_PROGRESS}


def test_forget_keeps_to_its_queryset() -> None:
    make_all()
    assert keys.filter(key=State.COMPLETED).forget() == 1
    assert len(states()) == len(STATES) - 1


def test_purge_deletes_what_has_expired_and_never_a_live_lease() -> None:
    make_all()
    assert keys.purge() == 0
    for state in STATES:
        make(f"old {state}", state, age=timedelta(hours=2))
    keys.filter(key=f"old {State.IN_PROGRESS}").update(
        expires_at=Now() + timedelta(hours=1, minutes=1)
    )
    assert keys.purge() == 4
    left = {f"old {State.IN_PROGRESS}", f"old {State.OUTCOME_UNKNOWN}"}
    assert set(states()) == {*ALL, *left}


def test_purge_deletes_a_batch_at_most() -> None:
    for number in range(5):
        make(str(number), State.COMPLETED, age=timedelta(hours=2 + number))
    assert keys.purge(batch_size=2) == 2
    assert set(states()) == {"0", "1", "2"}


def test_purge_reads_its_index() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        keys.purge()
    [select] = [query["sql"] for query in queries if "SKIP LOCKED" in query["sql"]]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {select}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "idempotency_expires" in plan


@pytest.mark.django_db(transaction=True)
def test_purge_skips_what_somebody_holds() -> None:
    for key in ("held", "free"):
        make(key, State.COMPLETED, age=timedelta(hours=2))
    purged: list[int] = []

    def other() -> None:
        purged.append(keys.purge())
        connection.close()

    with transaction.atomic():
        keys.select_for_update().get(key="held")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert purged == [1]
    assert set(states()) == {"held"}


@pytest.fixture
def server_side_binding(transactional_db: None) -> Iterator[None]:
    options = connection.settings_dict["OPTIONS"]
    connection.close()
    options["server_side_binding"] = True
    try:
        yield
    finally:
        connection.close()
        del options["server_side_binding"]


def test_every_statement_works_where_the_server_binds(server_side_binding: None) -> None:
    one, terms, token = operation(), Terms(lease=timedelta(minutes=1)), uuid4()
    assert keys.claim_lease(one, terms, token, "me")
    assert keys.extend(one, token, terms.lease, b"steps")
    assert keys.let_go(one, token)
    assert keys.claim_lease(one, terms, token, "me")
    assert keys.settle(one, token, State.FAILED_TERMINAL, error="x")
    assert keys.release() == 1
    assert keys.claim_lease(one, terms, token, "me")
    assert keys.settle(one, token, State.OUTCOME_UNKNOWN)
    assert keys.resolve(completed=1) == 1
    found = keys.look_up(one)
    assert found is not None
    assert found.record.finished_at is not None
    assert keys.clock() >= found.record.finished_at
    late = replace(one, key="late", published_at=keys.clock() - timedelta(hours=2))
    assert not keys.claim_lease(late, terms, token, "me")
    assert keys.purge() == 0
    assert keys.forget() == 1


class Replica:
    """Reads go to another alias than writes."""

    def db_for_read(self, model: type, **hints: object) -> str:
        return "other"

    def db_for_write(self, model: type, **hints: object) -> str:
        return "default"


@pytest.mark.django_db(databases=["default", "other"], transaction=True)
def test_the_words_change_the_database_that_is_written(settings: Any) -> None:
    settings.DATABASE_ROUTERS = [Replica()]
    make("old", State.COMPLETED, age=timedelta(hours=2))
    make("failed", State.FAILED_TERMINAL)
    make("unknown", State.OUTCOME_UNKNOWN)
    assert keys.purge() == 1
    assert keys.release() == 1
    assert keys.resolve(retry=True) == 1
    assert keys.forget() == 2


def test_the_command_purges_in_batches() -> None:
    for number in range(5):
        make(str(number), State.COMPLETED, age=timedelta(hours=2))
    make("k", State.COMPLETED)
    out = StringIO()
    call_command("idempotency_purge", batch_size=2, stdout=out)
    assert out.getvalue() == "deleted 5\n"
    assert set(states()) == {"k"}


def test_the_command_purges_the_database_that_it_is_told() -> None:
    with pytest.raises(CommandError, match="There is no database 'nowhere'"):
        call_command("idempotency_purge", database="nowhere")
    with pytest.raises(CommandError, match="at least 1, not 0"):
        call_command("idempotency_purge", batch_size=0)


@pytest.mark.django_db(databases=["default", "other"])
def test_the_command_purges_several_databases() -> None:
    make("k", State.COMPLETED, age=timedelta(hours=2))
    out = StringIO()
    arguments = ["--database", "other", "--database", "default"]
    call_command("idempotency_purge", *arguments, stdout=out)
    assert out.getvalue() == "other: deleted 0\ndefault: deleted 1\n"


@pytest.mark.django_db(databases=["default", "other"])
def test_a_database_that_is_away_does_not_keep_the_command_from_the_next() -> None:
    make("k", State.COMPLETED, age=timedelta(hours=2))
    out = StringIO()
    with transaction.atomic(using="other"):
        with connections["other"].cursor() as cursor:
            cursor.execute("ALTER TABLE idempotency_idempotencykey RENAME TO elsewhere")
        arguments = ["--database", "other", "--database", "default"]
        with pytest.raises(CommandError, match=r"^other: .* Run manage\.py migrate\.$"):
            call_command("idempotency_purge", *arguments, stdout=out)
        transaction.set_rollback(True, using="other")
    assert out.getvalue() == "default: deleted 1\n"


def test_the_task_purges_a_bounded_number_of_batches() -> None:
    for number in range(5):
        make(str(number), State.COMPLETED, age=timedelta(hours=2))
    assert purge.name == "idempotency.purge"
    assert purge(batch_size=2, max_batches=2) == 4
    assert purge(batch_size=2) == 1
    assert purge() == 0


def operation() -> Operation:
    return Operation(namespace="tests", scope="", key="k", ttl=timedelta(hours=1))


def test_every_change_of_a_lease_is_one_statement() -> None:
    store, terms, token = keys.all(), Terms(lease=timedelta(minutes=1)), uuid4()
    with CaptureQueriesContext(connection) as queries:
        assert store.claim_lease(operation(), terms, token, "owner")
        assert store.extend(operation(), token, terms.lease, b"steps")
        assert store.settle(operation(), token, State.COMPLETED, result=b"r")
    assert len(queries) == 3

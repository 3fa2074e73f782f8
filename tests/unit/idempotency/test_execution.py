"""The algorithm, row by row of what can be in the table when it starts."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from celery.exceptions import Ignore, Reject, Retry
from django.db import (
    IntegrityError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext

from idempotency import idempotent
from idempotency.conf import LONGEST
from idempotency.exceptions import (
    ImproperlyUsed,
    KeyInProgress,
    KeyMissing,
    KeyReused,
    ReentrantUse,
    ResultUnavailable,
)
from idempotency.execution import Operation
from idempotency.keys import lock_number
from idempotency.models import IdempotencyKey
from idempotency.signals import executed, receipt, replayed
from tests.helpers import wait_for
from tests.project.models import Effect
from tests.sessions import another_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.dispatch import Signal

    from idempotency.execution import Outcome

keys = IdempotencyKey.objects


def effect(value: Any = None) -> Any:
    Effect.objects.create(label="effect")
    return value


def run(
    func: Callable[[], Any] = effect, key: str = "k", namespace: str = "tests", **options: Any
) -> Outcome[Any]:
    return keys.run_once(key, func, namespace=namespace, **options)


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        effect()
        raise error

    return body


@contextmanager
def received(signal: Signal) -> Iterator[list[dict[str, Any]]]:
    calls: list[dict[str, Any]] = []

    def receiver(**kwargs: Any) -> None:
        calls.append(kwargs)

    signal.connect(receiver)
    try:
        yield calls
    finally:
        signal.disconnect(receiver)


@contextmanager
def receipts(sql: str) -> Iterator[None]:
    """Have a statement with one parameter, "receipt", written with each key."""

    def receiver(**kwargs: Any) -> list[tuple[str, list[str]]]:
        return [(sql, ["receipt"])]

    receipt.connect(receiver)
    try:
        yield
    finally:
        receipt.disconnect(receiver)


def expire(key: str = "k") -> None:
    keys.filter(key=key).update(expires_at=datetime(2020, 1, 1, tzinfo=UTC))


class TestAbsent:
    pytestmark = pytest.mark.django_db

    def test_executes_and_writes_the_row(self) -> None:
        before = datetime.now(UTC)

        outcome = run(lambda: effect("done"), scope="tenant", ttl=60)

        assert (outcome.value, outcome.replayed) == ("done", False)
        row = keys.get()
        assert (row.namespace, row.scope, row.key) == ("tests", "tenant", "k")
        assert row.state == IdempotencyKey.State.COMPLETED
        assert row.message_id == ""
        assert row.finished_at
        assert row.expires_at
        assert before <= row.created_at <= row.finished_at <= datetime.now(UTC)
        assert (row.expires_at - row.finished_at).total_seconds() == pytest.approx(60, abs=0.1)

    def test_returns_the_very_value_of_the_body(self) -> None:
        value: dict[str, Any] = {}
        assert run(lambda: value).value is value

    def test_costs_two_statements(self) -> None:
        run(key="warm")
        with CaptureQueriesContext(connection) as queries:
            run(lambda: None)
        statements = [q["sql"] for q in queries if "SAVEPOINT" not in q["sql"]]
        assert len(statements) == 2, statements

    def test_sends_executed_inside_the_transaction(self) -> None:
        with received(executed) as calls:
            run(lambda: 7)
        [call] = calls
        assert call["sender"] is IdempotencyKey
        assert call["using"] == "default"
        assert call["message_id"] == ""
        assert call["record"] == keys.get()
        for field in IdempotencyKey._meta.concrete_fields:
            stored = getattr(keys.get(), field.attname)
            told = getattr(call["record"], field.attname)
            assert told == stored, field.name

    def test_a_receipt_is_written_with_the_key(self) -> None:
        with receipts("INSERT INTO project_effect (label, created_at) VALUES (%s, now())"):
            run(lambda: None)
            run(lambda: None)
        assert keys.count() == 1
        assert Effect.objects.filter(label="receipt").count() == 2  # a duplicate's, too

    def test_a_receipt_that_violates_a_constraint_is_no_race(self) -> None:
        with (
            receipts("INSERT INTO project_effect SELECT * FROM project_effect WHERE label <> %s"),
            pytest.raises(IntegrityError, match="project_effect_pkey"),
        ):
            run()
        assert not keys.exists()
        assert not Effect.objects.exists()

    def test_a_receiver_that_fails_rolls_everything_back(self) -> None:
        def receiver(**kwargs: Any) -> None:
            raise RuntimeError("the receipt cannot be written")

        executed.connect(receiver)
        try:
            with pytest.raises(RuntimeError, match="receipt"):
                run()
        finally:
            executed.disconnect(receiver)
        assert not keys.exists()
        assert not Effect.objects.exists()


class TestCompleted:
    pytestmark = pytest.mark.django_db

    @pytest.mark.parametrize(
        "value",
        [
            None,
            False,
            0,
            "",
            [],
            {},
            (),
            Decimal("10.50"),
            datetime(2026, 1, 1, tzinfo=UTC),
            UUID(int=1),
            b"\x00",
            {"a": (1, {2})},
        ],
        ids=repr,
    )
    def test_replays_the_value_and_its_type(self, value: Any) -> None:
        run(lambda: effect(value))

        outcome = run(lambda: effect("again"))

        assert outcome.replayed
        assert outcome.value == value
        assert type(outcome.value) is type(value)
        assert Effect.objects.count() == 1

    def test_sends_replayed_and_not_executed(self) -> None:
        run(lambda: 7)
        with received(executed) as again, received(replayed) as calls:
            run(lambda: 8)
        assert not again
        [call] = calls
        assert call["sender"] is IdempotencyKey
        assert call["record"] == keys.get()
        assert (call["message_id"], call["using"]) == ("", "default")

    def test_on_commit_hooks_do_not_run_again(
        self, django_capture_on_commit_callbacks: Any
    ) -> None:
        ran: list[int] = []
        with django_capture_on_commit_callbacks(execute=True):
            run(lambda: transaction.on_commit(lambda: ran.append(1)))
            run(lambda: transaction.on_commit(lambda: ran.append(2)))
        assert ran == [1]

    def test_the_same_fingerprint_replays(self) -> None:
        run(lambda: 1, fingerprint={"amount": Decimal("1.0")})
        assert run(lambda: 2, fingerprint={"amount": 1}).value == 1

    def test_another_fingerprint_is_a_mismatch(self) -> None:
        run(lambda: 1, fingerprint={"amount": 1})
        with pytest.raises(KeyReused, match=r"tests idk1:\w{12} .* other arguments"):
            run(effect, fingerprint={"amount": 2})
        assert not Effect.objects.exists()
        assert run(lambda: 2, fingerprint={"amount": 1}).value == 1

    def test_a_fingerprint_that_was_not_taken_is_not_compared(self) -> None:
        run(lambda: 1)
        assert run(lambda: 2, fingerprint="any").value == 1

    def test_other_identities_are_other_operations(self) -> None:
        outcomes = [
            run(),
            run(key="other"),
            run(namespace="other"),
            run(scope="other"),
            run(scope="k", key="tests", namespace="other"),
        ]
        assert not any(outcome.replayed for outcome in outcomes)

    def test_a_scope_is_given_like_a_key(self) -> None:
        assert not run(scope=7).replayed
        assert run(scope="7").replayed

    def test_another_codecs_result_is_not_executed_again(self) -> None:
        run(lambda: 1)
        keys.update(result=b"other:1")
        with pytest.raises(ResultUnavailable, match="other"):
            run(effect)
        assert not Effect.objects.exists()


class TestExpired:
    pytestmark = pytest.mark.django_db

    def test_executes_again_and_replaces_the_row(self) -> None:
        run(lambda: 1, fingerprint="a")
        first = keys.get()
        expire()

        outcome = run(lambda: 2, fingerprint="b")

        assert (outcome.value, outcome.replayed) == (2, False)
        second = keys.get()
        assert second.pk == first.pk
        assert second.created_at > first.created_at
        assert second.fingerprint != first.fingerprint
        assert run(lambda: 3, fingerprint="b").value == 2

    def test_a_row_that_is_purged_meanwhile_is_written_anew(self) -> None:
        run(lambda: 1)
        expire()
        assert run(lambda: keys.all().delete() and 2).value == 2
        assert keys.count() == 1


class TestBody:
    pytestmark = pytest.mark.django_db

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("body"),
            KeyboardInterrupt(),
            SystemExit(1),
            GeneratorExit(),
            Retry("later"),
            Ignore(),
            Reject("no", requeue=True),
            OperationalError("the body's own"),
            KeyInProgress("of another key"),
        ],
        ids=repr,
    )
    def test_what_it_raises_leaves_nothing_behind(self, error: BaseException) -> None:
        with pytest.raises(type(error)) as raised:
            run(raising(error))

        assert raised.value is error
        assert error.__cause__ is None
        assert error.__context__ is None
        assert not keys.exists()
        assert not Effect.objects.exists()
        assert run(lambda: effect(1)).value == 1

    def test_its_database_error_is_not_masked(self) -> None:
        def body() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT nonsense")

        with pytest.raises(ProgrammingError, match="nonsense"):
            run(body)
        assert run(lambda: 1).value == 1

    def test_its_own_serialization_failure_is_not_translated(self) -> None:
        def body() -> None:
            with connection.cursor() as cursor:
                cursor.execute("DO $$BEGIN RAISE EXCEPTION 'mine' USING ERRCODE = '40001'; END$$")

        with pytest.raises(OperationalError, match="mine"):
            run(body)

    def test_a_transaction_that_it_broke_is_rolled_back(self) -> None:
        def body() -> None:
            effect()
            transaction.set_rollback(True)

        with pytest.raises(transaction.TransactionManagementError):
            run(body)
        assert not keys.exists()

    def test_a_result_that_cannot_be_stored_rolls_it_back(self) -> None:
        with pytest.raises(ImproperlyUsed, match=r"result\['a'\]: a builtins\.object"):
            run(lambda: effect({"a": object()}))
        assert not Effect.objects.exists()
        assert not keys.exists()

    def test_it_may_not_run_its_own_key(self) -> None:
        with pytest.raises(ReentrantUse, match=r"tests idk1:\w{12} calls itself"):
            run(lambda: run(effect).value)
        assert not Effect.objects.exists()

    def test_it_may_run_other_keys(self) -> None:
        assert run(lambda: run(lambda: run(lambda: 3, key="c").value, key="b").value).value == 3
        assert keys.count() == 3

    def test_a_reentrant_use_leaves_no_trace(self) -> None:
        with pytest.raises(ReentrantUse):
            run(lambda: run(effect).value)
        assert run(lambda: 1).value == 1


class TestOuterTransaction:
    pytestmark = pytest.mark.django_db

    def test_shares_its_fate(self) -> None:
        with transaction.atomic():
            assert not run().replayed
            assert run().replayed
            transaction.set_rollback(True)
        assert not Effect.objects.exists()
        assert not run().replayed

    def test_survives_the_body_that_fails(self) -> None:
        with transaction.atomic():
            Effect.objects.create(label="before")
            with pytest.raises(RuntimeError):
                run(raising(RuntimeError()))
            Effect.objects.create(label="after")
        assert set(Effect.objects.values_list("label", flat=True)) == {"before", "after"}


@pytest.mark.django_db(transaction=True)
class TestInProgress:
    def test_a_twin_is_told_at_once(self) -> None:
        with twin_executing(), pytest.raises(KeyInProgress, match=r"tests idk1:\w{12}") as raised:
            run()
        assert raised.value.retry_after > 0
        assert Effect.objects.count() == 1

    def test_a_twin_is_told_at_once_where_leased_mode_left_a_failure(self) -> None:
        @idempotent(namespace="tests", key="k", mode="leased")
        def failing() -> None:
            raise RuntimeError

        with pytest.raises(RuntimeError):
            failing()
        with twin_executing(), pytest.raises(KeyInProgress):
            run()
        assert Effect.objects.count() == 1
        assert run(lambda: 2).replayed

    def test_other_keys_go_on(self) -> None:
        with twin_executing():
            assert run(lambda: 1, key="other").value == 1

    def test_a_wait_ends_with_the_twins_result(self) -> None:
        with twin_executing(until_waited_for=True):
            outcome = run(wait=30)
        assert outcome.replayed
        assert Effect.objects.count() == 1

    def test_a_wait_executes_if_the_twin_fails(self) -> None:
        with twin_executing(until_waited_for=True, error=RuntimeError()):
            outcome = run(wait=30)
        assert not outcome.replayed
        assert Effect.objects.count() == 1

    def test_a_wait_is_bounded(self) -> None:
        with twin_executing(), pytest.raises(KeyInProgress) as raised:
            run(wait=timedelta(milliseconds=50))
        assert isinstance(raised.value.__cause__, OperationalError)

    def test_a_wait_leaves_the_lock_timeout_as_it_was(self) -> None:
        def lock_timeout() -> str:
            with connection.cursor() as cursor:
                cursor.execute("SHOW lock_timeout")
                return str(cursor.fetchone()[0])

        twin = twin_executing(until_waited_for=True, error=RuntimeError())
        with twin, transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '7s'")
            assert run(lock_timeout, wait=30).value == "7s"

    def test_a_wait_in_vain_leaves_the_outer_transaction_usable(self) -> None:
        with twin_executing(), transaction.atomic():
            with pytest.raises(KeyInProgress):
                run(wait=0.05)
            Effect.objects.create(label="after")
        assert Effect.objects.filter(label="after").exists()

    def test_a_completed_key_is_replayed_whoever_has_its_lock(self) -> None:
        run(lambda: 1)
        with locked("k"):
            assert run(lambda: 2).value == 1


@contextmanager
def twin_executing(
    *, until_waited_for: bool = False, error: Exception | None = None
) -> Iterator[None]:
    """Another thread is in the body of the key "k"; it ends with the block, or when waited for."""
    entered, finish = threading.Event(), threading.Event()

    def body() -> None:
        effect()
        entered.set()
        wait_for(lambda: finish.is_set() or (until_waited_for and somebody_waits()))
        if error is not None:
            raise error

    def twin() -> None:
        with suppress(RuntimeError):
            run(body)

    with thread(twin) as started:
        started.start()
        assert entered.wait(30)
        try:
            yield
        finally:
            finish.set()


def somebody_waits() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return cursor.fetchone() is not None


@contextmanager
def thread(func: Callable[[], object]) -> Iterator[threading.Thread]:
    """A thread that has connections of its own and closes them."""

    def call() -> None:
        try:
            func()
        finally:
            connections.close_all()

    made = threading.Thread(target=call)
    try:
        yield made
    finally:
        made.join()


def elsewhere(func: Callable[[], object]) -> None:
    """Call it in another thread, which has another connection."""
    with thread(func) as started:
        started.start()


@contextmanager
def locked(key: str) -> Iterator[None]:
    with another_session() as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [lock_number("tests", "", key)])
        yield


@pytest.mark.django_db(transaction=True)
class TestIsolation:
    @pytest.fixture(params=["REPEATABLE READ", "SERIALIZABLE"])
    def old_snapshot(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """A transaction whose snapshot is older than what the test does elsewhere."""
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {request.param}")
                cursor.execute("SELECT 1")
            yield

    def test_a_row_behind_the_snapshot_is_in_progress(self, old_snapshot: None) -> None:
        elsewhere(run)
        with pytest.raises(KeyInProgress):
            run()
        assert Effect.objects.count() == 0  # of this snapshot

    def test_a_row_replaced_behind_the_snapshot_is_in_progress(self) -> None:
        run(lambda: 1)
        expire()
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                cursor.execute("SELECT 1")
            elsewhere(run)
            with pytest.raises(KeyInProgress) as raised:
                run()
            assert isinstance(raised.value.__cause__, OperationalError)
        assert run(effect).replayed

    def test_a_serialization_failure_at_commit_is_in_progress(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
                "RAISE EXCEPTION 'at commit' USING ERRCODE = '40001'; END$$"
            )
            cursor.execute(
                "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON project_effect "
                "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse()"
            )
        try:
            with pytest.raises(KeyInProgress) as raised:
                run()
        finally:
            with connection.cursor() as cursor:
                cursor.execute("DROP TRIGGER refuse ON project_effect")
        assert isinstance(raised.value.__cause__, OperationalError)
        assert not keys.exists()

    def test_another_failure_at_commit_is_told_as_it_is(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "ALTER TABLE project_effect ADD CONSTRAINT once UNIQUE (label) "
                "DEFERRABLE INITIALLY DEFERRED"
            )
        try:
            with pytest.raises(IntegrityError, match="once"):
                run(lambda: effect(effect()))
        finally:
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE project_effect DROP CONSTRAINT once")
        assert not keys.exists()


@pytest.mark.django_db(transaction=True)
class TestCommit:
    """The commit travels with the key where the transaction ends with it, and only there."""

    @pytest.fixture(autouse=True)
    def unheard(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the counters that other tests import."""
        monkeypatch.setattr(executed, "receivers", [])

    @staticmethod
    def committed(func: Callable[[], Any] = effect) -> bool:
        """Whether the statement that wrote the key committed as well."""
        with CaptureQueriesContext(connection) as queries, suppress(RuntimeError):
            run(func)
        (written,) = (q["sql"] for q in queries if "INSERT INTO idempotency" in q["sql"])
        return str(written).rstrip().endswith("COMMIT")

    def test_goes_with_the_key(self) -> None:
        hooks: list[bool] = []

        def body() -> None:
            effect()
            transaction.on_commit(lambda: hooks.append(keys.exists()))

        assert self.committed(body)
        assert hooks == [True]
        assert not connection.in_atomic_block
        assert run().replayed

    def test_an_outer_transaction_keeps_its_own(self) -> None:
        with transaction.atomic():
            assert not self.committed()
            transaction.set_rollback(True)
        assert not keys.exists()
        assert not Effect.objects.exists()

    def test_without_autocommit_the_caller_commits(self) -> None:
        transaction.set_autocommit(False)
        try:
            assert not self.committed()
            transaction.rollback()
        finally:
            transaction.set_autocommit(True)
        assert not keys.exists()
        assert not Effect.objects.exists()

    def test_a_listener_still_belongs_to_the_transaction(self) -> None:
        def refuse(**kwargs: Any) -> None:
            raise RuntimeError

        executed.connect(refuse)
        try:
            assert not self.committed()
        finally:
            executed.disconnect(refuse)
        assert not keys.exists()
        assert not Effect.objects.exists()

    def test_what_the_body_marked_for_rollback_is_rolled_back(self) -> None:
        def body() -> None:
            effect()
            with suppress(RuntimeError), transaction.atomic(savepoint=False):
                raise RuntimeError

        with pytest.raises(transaction.TransactionManagementError):
            run(body)
        assert not keys.exists()
        assert not Effect.objects.exists()


@pytest.mark.django_db(databases=["default", "other"])
def test_another_alias_has_its_own_keys() -> None:
    outcome = run(lambda: 1, using="other")
    assert not outcome.replayed
    assert keys.using("other").count() == 1
    assert not keys.exists()
    assert run(lambda: 2, using="other").value == 1
    assert run(lambda: 3).value == 3


@pytest.mark.django_db
def test_server_side_binding_needs_two_statements(settings: Any) -> None:
    options = connection.settings_dict["OPTIONS"]
    options["server_side_binding"] = True
    try:
        with receipts("INSERT INTO project_effect (label, created_at) VALUES (%s, now())"):
            assert not run(lambda: 1).replayed
            assert run(lambda: 2).value == 1
        assert Effect.objects.filter(label="receipt").count() == 2
    finally:
        del options["server_side_binding"]


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"namespace": ""}, ImproperlyUsed, "has no namespace"),
        ({"namespace": 5}, ImproperlyUsed, "The namespace of an operation must be text, not 5"),
        ({"key": "k" * 256}, ImproperlyUsed, "at most 255 characters, and has 256"),
        ({"key": "a\x00"}, ImproperlyUsed, "printable"),
        ({"key": "a\nforged"}, ImproperlyUsed, "printable"),
        ({"scope": "\ud800"}, ImproperlyUsed, "The scope .* printable"),
        ({"key": ""}, KeyMissing, "The key for 'tests' came out empty"),
        ({"key": 1.5}, ImproperlyUsed, "is a float"),
        ({"scope": None}, KeyMissing, "The scope for 'tests' came out empty"),
        ({"scope": ["tenant"]}, ImproperlyUsed, "The scope for 'tests' is a list"),
        ({"ttl": 0}, ValueError, "ttl= must be at least"),
        ({"ttl": "1"}, TypeError, "ttl= is seconds or a timedelta"),
        ({"ttl": timedelta.max}, ValueError, "ttl= must be at most"),
        ({"ttl": math.inf}, ValueError, "ttl= must be at most"),
        ({"wait": math.nan}, ValueError, "wait= must be at most"),
        ({"wait": -1}, ValueError, "wait= must be at least"),
    ],
)
def test_what_is_not_an_operation_is_refused(
    changed: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        run(**changed)


@pytest.mark.django_db
def test_the_longest_ttl_can_be_read_back() -> None:
    run(ttl=LONGEST)
    assert run(ttl=LONGEST).replayed


@pytest.mark.parametrize("name", ["namespace", "scope", "key"])
@pytest.mark.parametrize("value", [5, b"bytes", ["x"]])
def test_an_operation_is_of_text(name: str, value: Any) -> None:
    texts = {"namespace": "n", "scope": "s", "key": "k", name: value}
    with pytest.raises(ImproperlyUsed, match=f"The {name} of an operation must be text"):
        Operation(**texts, ttl=timedelta(1))


def test_an_operation_takes_255_characters() -> None:
    Operation(namespace="n" * 255, scope="s" * 255, key="k" * 255, ttl=timedelta(1))

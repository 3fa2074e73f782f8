"""Inside leased work: steps, fences, exceptions, the heartbeat, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from idempotency import derived_key, fenced, idempotent, signals, step
from idempotency.exceptions import (
    ImproperlyUsed,
    KeyInProgress,
    KeyMissing,
    KeyReused,
    LeaseLost,
    OutcomeUnknown,
    ReentrantUse,
    StoredFailure,
)
from idempotency.models import IdempotencyKey
from tests.helpers import wait_for
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.dispatch import Signal

State = IdempotencyKey.State


def leased(func: Callable[[], Any], **options: Any) -> Callable[[], Any]:
    given = {"key": "k", "namespace": "tests", "mode": "leased", **options}

    @idempotent(**given)
    def work() -> Any:
        return func()

    return work


def record() -> IdempotencyKey:
    stored: IdempotencyKey = IdempotencyKey.objects.get()
    return stored


def noting(value: Any, calls: list[Any]) -> Any:
    calls.append(value)
    return value


def take_over() -> None:
    """Become the owner of the only lease, from another connection."""

    def other() -> None:
        IdempotencyKey.objects.update(token="0" * 32)
        connection.close()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()


def effects() -> list[str]:
    return list(Effect.objects.order_by("pk").values_list("label", flat=True))


@contextmanager
def received(signal: Signal) -> Iterator[list[dict[str, Any]]]:
    calls: list[dict[str, Any]] = []

    def receive(**kwargs: Any) -> None:
        calls.append({**kwargs, "in_transaction": connection.in_atomic_block})

    signal.connect(receive)
    try:
        yield calls
    finally:
        signal.disconnect(receive)


@pytest.mark.django_db
class TestStep:
    def test_runs_once_for_each_name_in_an_attempt(self) -> None:
        calls: list[str] = []

        def body() -> list[Any]:
            return [step(name, noting, name, calls) for name in ("a", "b", "a")]

        assert leased(body)() == ["a", "b", "a"]
        assert calls == ["a", "b"]

    def test_passes_arguments(self) -> None:
        assert leased(lambda: step("one", int, "ff", base=16))() == 255

    def test_is_not_repeated_in_the_next_attempt(self) -> None:
        calls: list[int] = []

        def body() -> Any:
            value = step("one", noting, 7, calls)
            if len(IdempotencyKey.objects.filter(attempt=1)) == 1:
                raise RuntimeError
            return value

        guarded = leased(body)
        with pytest.raises(RuntimeError):
            guarded()
        assert guarded() == 7
        assert calls == [7]

    def test_records_what_it_was_given_and_not_what_became_of_it(self) -> None:
        def body() -> None:
            value = step("one", lambda: [1])
            value.append(2)
            step("two", lambda: 2)
            raise RuntimeError

        with pytest.raises(RuntimeError):
            leased(body)()
        assert leased(lambda: step("one", list))() == [1]

    def test_that_raises_is_not_recorded(self) -> None:
        def body(error: type[Exception] | None = None) -> Any:
            return step("one", lambda: 1 / 0 if error else 1)

        with pytest.raises(ZeroDivisionError):
            leased(lambda: body(ZeroDivisionError))()
        assert record().checkpoint is None
        assert leased(body)() == 1

    def test_outside_leased_work_is_refused(self) -> None:
        with pytest.raises(ImproperlyUsed, match=r"step\(\) belongs inside"):
            step("one", list)

    def test_inside_a_transaction_of_ones_own_is_refused(self) -> None:
        def body() -> None:
            with transaction.atomic():
                step("one", list)

        with pytest.raises(ImproperlyUsed, match=r"step\('one'\).*open transaction"):
            leased(body)()

    def test_a_result_that_cannot_be_stored_leaves_the_outcome_unknown(self) -> None:
        with pytest.raises(ImproperlyUsed, match="would not come back") as caught:
            leased(lambda: step("one", object))()
        assert "'one' has run" in caught.value.__notes__[0]
        assert record().state == State.OUTCOME_UNKNOWN
        with pytest.raises(OutcomeUnknown):
            leased(list)()

    def test_belongs_to_the_innermost_leased_work(self) -> None:
        def outer() -> list[str]:
            inner = leased(lambda: derived_key("a"), namespace="inner")
            return [derived_key("a"), inner(), derived_key("a")]

        first, second, third = leased(outer)()
        assert first == third != second


@pytest.mark.django_db
class TestDerivedKey:
    def test_is_the_same_in_each_attempt_and_another_for_each_name(self) -> None:
        keys: list[list[str]] = []

        def body() -> None:
            keys.append([derived_key("a"), derived_key("b")])
            if len(keys) == 1:
                raise RuntimeError

        with pytest.raises(RuntimeError):
            leased(body)()
        leased(body)()
        assert keys[0] == keys[1]
        assert keys[0][0] != keys[0][1]
        assert keys[0][0].startswith("idk1:")

    def test_is_another_for_each_scope(self) -> None:
        one, two = (leased(lambda: derived_key("a"), scope=scope)() for scope in ("1", "2"))
        assert one != two

    def test_outside_leased_work_is_refused(self) -> None:
        with pytest.raises(ImproperlyUsed, match=r"derived_key\(\) belongs inside"):
            derived_key("a")


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
class TestFenced:
    def test_commits(self) -> None:
        def body() -> None:
            with fenced():
                Effect.objects.create(label="a")
            assert not connection.in_atomic_block

        leased(body)()
        assert effects() == ["a"]

    def test_checks_the_token_in_its_last_statement(self) -> None:
        def body() -> None:
            with fenced():
                Effect.objects.create(label="a")
                take_over()

        with pytest.raises(LeaseLost):
            leased(body)()
        assert effects() == []

    def test_on_another_database_too(self) -> None:
        def body(lose: bool) -> None:
            with fenced(using="other"):
                Effect.objects.using("other").create(label="a")
                if lose:
                    take_over()

        with pytest.raises(LeaseLost):
            leased(lambda: body(lose=True))()
        assert not Effect.objects.using("other").exists()
        IdempotencyKey.objects.all().delete()
        leased(lambda: body(lose=False))()
        assert Effect.objects.using("other").count() == 1

    def test_nobody_takes_over_between_the_check_and_the_commit(self) -> None:
        """The check holds the row's lock until its transaction has ended."""
        waiting: list[bool] = []

        def body() -> None:
            with fenced(using="other"):
                Effect.objects.using("other").create(label="a")
                transaction.on_commit(lambda: waiting.append(locked()), using="other")

        def locked() -> bool:
            rows: list[Any] = []

            def look() -> None:
                keys = IdempotencyKey.objects.select_for_update(skip_locked=True)
                with transaction.atomic():
                    rows.extend(keys)
                connection.close()

            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            return not rows

        leased(body)()
        assert waiting == [True]

    def test_a_step_inside_commits_with_it(self) -> None:
        def body(fail: bool) -> None:
            with fenced():
                step("write", lambda: Effect.objects.create(label="a").label)
                if fail:
                    raise RuntimeError

        for _ in range(2):
            with pytest.raises(RuntimeError):
                leased(lambda: body(fail=True))()
            assert record().checkpoint is None
            assert effects() == []
        leased(lambda: body(fail=False))()
        assert effects() == ["a"]

    def test_a_step_whose_block_was_rolled_back_runs_again_in_the_same_attempt(self) -> None:
        def body() -> None:
            for failure in (LookupError, None):
                with suppress(LookupError), fenced():
                    step("write", lambda: Effect.objects.create(label="a").label)
                    if failure is not None:
                        raise failure

        leased(body)()
        assert effects() == ["a"]

    def test_a_block_inside_that_is_rolled_back_forgets_no_step_of_the_one_around(self) -> None:
        def body(fail: bool) -> None:
            with fenced():
                step("write", lambda: Effect.objects.create(label="a").label)
                with suppress(LookupError), fenced():
                    step("more", lambda: Effect.objects.create(label="b").label)
                    raise LookupError
            if fail:
                raise RuntimeError

        fail_once(body)
        assert effects() == ["a"]

    def test_a_step_whose_block_is_rolled_back_by_a_transaction_around_it_runs_again(self) -> None:
        def body() -> None:
            with suppress(LookupError), transaction.atomic():
                with fenced():
                    step("write", lambda: Effect.objects.create(label="a").label)
                raise LookupError
            with fenced():
                step("write", lambda: Effect.objects.create(label="a").label)

        leased(body)()
        assert effects() == ["a"]

    def test_a_step_whose_commit_was_reported_as_an_error_is_not_repeated(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def body() -> None:
            for fail in (True, False):
                with suppress(OperationalError), fenced():
                    step("write", lambda: Effect.objects.create(label="a").label)
                    if fail:
                        lose_the_answer_to_commit(monkeypatch)

        leased(body)()
        assert effects() == ["a"]

    def test_a_crash_after_it_does_not_repeat_its_steps(self) -> None:
        def body(fail: bool) -> None:
            with fenced():
                step("write", lambda: Effect.objects.create(label="a").label)
            if fail:
                raise RuntimeError

        fail_once(body)
        assert effects() == ["a"]

    def test_outside_leased_work_is_refused(self) -> None:
        with pytest.raises(ImproperlyUsed, match=r"fenced\(\) belongs inside"), fenced():
            pass


def fail_once(body: Callable[..., None]) -> None:
    """Execute it twice: the first time it fails."""
    with pytest.raises(RuntimeError):
        leased(lambda: body(fail=True))()
    leased(lambda: body(fail=False))()


def lose_the_answer_to_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next COMMIT take place and be reported as an error."""
    commit = BaseDatabaseWrapper._commit  # type: ignore[attr-defined]

    def committed_and_cut(self: BaseDatabaseWrapper) -> None:
        monkeypatch.setattr(BaseDatabaseWrapper, "_commit", commit)
        commit(self)
        raise OperationalError("the answer to COMMIT is lost")

    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", committed_and_cut)


def cut_the_connection() -> None:
    """Have the server end this session."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [pid] = cursor.fetchone()

    def other() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
        connection.close()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()


@pytest.mark.django_db(transaction=True)
class TestUnknownCommit:
    def test_of_a_completion_that_took_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def body() -> str:
            lose_the_answer_to_commit(monkeypatch)
            return "done"

        assert leased(body)() == "done"
        assert record().state == State.COMPLETED

    def test_of_a_completion_that_did_not(self) -> None:
        cuts: list[int] = []

        def cut(**kwargs: Any) -> None:
            if not cuts:
                cuts.append(1)
                cut_the_connection()

        signals.executed.connect(cut)
        try:
            assert leased(lambda: "done")() == "done"
        finally:
            signals.executed.disconnect(cut)
        assert cuts
        assert record().state == State.COMPLETED

    def test_of_a_step(self) -> None:
        """The session ends while the step runs: its record goes through a new connection."""
        calls: list[int] = []

        def charge() -> int:
            calls.append(1)
            cut_the_connection()
            return 7

        assert leased(lambda: step("charge", charge))() == 7
        assert calls == [1]

    def test_of_a_claim(self) -> None:
        cut_the_connection()
        assert leased(lambda: "done")() == "done"

    def test_that_nobody_can_read_is_in_progress_and_not_a_failure(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its effect took place: it must be found out, and not be executed again at once."""

        def unanswered(self: BaseDatabaseWrapper) -> None:
            raise OperationalError("the answer to COMMIT is lost")

        def body() -> None:
            monkeypatch.setattr(BaseDatabaseWrapper, "_commit", unanswered)

        with pytest.raises(KeyInProgress, match="did not say"):
            leased(body)()
        monkeypatch.undo()
        assert record().state == State.IN_PROGRESS


@pytest.mark.django_db
class TestExceptions:
    @pytest.mark.parametrize(
        "error",
        [
            Retry(),
            Ignore(),
            Reject(),
            SystemExit(),
            KeyboardInterrupt(),
            GeneratorExit(),
            asyncio.CancelledError(),
            SoftTimeLimitExceeded(),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_that_end_a_delivery_release(self, error: BaseException) -> None:
        def body() -> None:
            step("one", lambda: 1)
            raise error

        with pytest.raises(type(error)):
            leased(body, on_failed="raise", max_attempts=1)()
        assert (record().state, record().error) == (State.FAILED_RETRYABLE, "")

    def test_a_twin_of_something_inside_is_no_failure(self) -> None:
        def body() -> None:
            raise KeyInProgress("inner")

        with pytest.raises(KeyInProgress, match="inner"):
            leased(body, max_attempts=1)()
        assert not IdempotencyKey.objects.exists()

    def test_others_fail(self) -> None:
        def body() -> None:
            raise LookupError("x" * 5000 + "\nDETAIL: Key (email)=(someone) already exists.")

        with pytest.raises(LookupError):
            leased(body)()
        stored = record()
        assert stored.state == State.FAILED_RETRYABLE
        assert stored.error.startswith("builtins.LookupError: xxx")
        assert len(stored.error.encode()) == 1024

    def test_an_error_of_the_bookkeeping_does_not_mask_it(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no disk")

        def body() -> None:
            monkeypatch.setattr(type(IdempotencyKey.objects.all()), "settle", broken)
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine") as caught:
            leased(body)()
        assert "no disk" in caught.value.__notes__[0]
        [logged] = [line for line in caplog.records if "Could not record" in line.message]
        assert "idk1:" in logged.message

    def test_a_result_that_cannot_be_stored_leaves_the_outcome_unknown(self) -> None:
        with pytest.raises(ImproperlyUsed, match="would not come back"):
            leased(object)()
        assert record().state == State.OUTCOME_UNKNOWN

    def test_an_error_of_a_receiver_fails_the_attempt(self) -> None:
        def refuse(**kwargs: Any) -> None:
            raise LookupError("receiver")

        signals.executed.connect(refuse)
        try:
            with pytest.raises(LookupError, match="receiver"):
                leased(lambda: 1)()
        finally:
            signals.executed.disconnect(refuse)
        assert record().state == State.FAILED_RETRYABLE

    def test_lost_leases_are_told_even_where_the_body_hides_it(self) -> None:
        def body() -> None:
            IdempotencyKey.objects.update(token="0" * 32)
            with pytest.raises(LeaseLost):
                step("one", list)

        with pytest.raises(LeaseLost):
            leased(body)()


@pytest.mark.django_db
class TestSignals:
    @pytest.mark.django_db(transaction=True)
    def test_executed_is_sent_in_the_transaction_of_the_completion(self) -> None:
        with received(signals.executed) as calls:
            leased(lambda: 7)()
        [call] = calls
        assert call["record"] == record()
        assert call["record"].state == State.COMPLETED
        assert (call["using"], call["message_id"]) == ("default", "")
        assert call["in_transaction"]

    @pytest.mark.django_db(transaction=True)
    def test_replayed_is_sent_in_a_transaction(self) -> None:
        guarded = leased(lambda: 7)
        guarded()
        with received(signals.replayed) as calls, received(signals.executed) as executed:
            guarded()
        assert calls[0]["record"] == record()
        assert calls[0]["in_transaction"]
        assert not executed

    @pytest.mark.parametrize(
        ("signal", "state", "error"),
        [
            (signals.in_progress, State.IN_PROGRESS, KeyInProgress),
            (signals.unknown, State.OUTCOME_UNKNOWN, OutcomeUnknown),
            (signals.mismatch, State.COMPLETED, KeyReused),
        ],
    )
    def test_outcomes_are_counted(self, signal: Signal, state: str, error: type[Exception]) -> None:
        def body() -> None:
            with received(signal) as calls, pytest.raises(error):
                inner()
            [call] = calls
            assert call["operation"].namespace == "tests"

        inner = leased(list, on_completed="raise")
        if state == State.COMPLETED:
            inner()
        else:
            IdempotencyKey.objects.all().claim_lease(_operation(), _terms(), "0" * 32, "owner")
            if state == State.OUTCOME_UNKNOWN:
                IdempotencyKey.objects.all().settle(_operation(), "0" * 32, state)
        body()

    def test_a_lost_lease_is_counted(self) -> None:
        with received(signals.fenced_out) as calls, pytest.raises(LeaseLost):
            leased(lambda: IdempotencyKey.objects.update(token="0" * 32))()
        assert len(calls) == 1

    def test_a_reclaimed_lease_is_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        IdempotencyKey.objects.all().claim_lease(_operation(), _terms(), "0" * 32, "owner")
        IdempotencyKey.objects.update(lease_expires_at="2020-01-01T00:00Z")
        with received(signals.reclaimed) as calls:
            leased(list)()
        assert len(calls) == 1
        [logged] = [line.message for line in caplog.records if "reclaimed" in line.message]
        assert logged.startswith("tests idk1:")

    def test_a_nested_guards_outcome_is_counted_once(self) -> None:
        IdempotencyKey.objects.all().claim_lease(_operation(), _terms(), "0" * 32, "owner")
        outer = leased(leased(list), namespace="outer")
        with received(signals.in_progress) as calls, pytest.raises(KeyInProgress):
            outer()
        assert len(calls) == 1


def _operation() -> Any:
    from idempotency.digests import fingerprint
    from idempotency.execution import Operation

    return Operation(
        namespace="tests", scope="", key="k", ttl=timedelta(hours=1), fingerprint=fingerprint({})
    )


def _terms() -> Any:
    from idempotency.stores import Terms

    return Terms(lease=timedelta(minutes=1))


@pytest.mark.django_db(transaction=True)
class TestHeartbeat:
    def test_extends_the_lease_on_a_connection_of_its_own(self) -> None:
        def body() -> None:
            before = record().lease_expires_at
            wait_for(lambda: record().lease_expires_at != before)
            IdempotencyKey.objects.update(created_at="2020-01-01T00:00Z")
            with transaction.atomic():
                Effect.objects.create(label="uncommitted")
                seen = record().lease_expires_at
                wait_for(lambda: record().lease_expires_at != seen)

        leased(body, lease=0.3)()

    def test_keeps_a_twin_out_for_longer_than_a_lease(self) -> None:
        def body() -> None:
            first = record().lease_expires_at
            assert first is not None
            wait_for(lambda: (record().lease_expires_at or first) > first + timedelta(seconds=0.6))
            errors: list[Exception] = []

            def twin() -> None:
                try:
                    leased(list)()
                except KeyInProgress as error:
                    errors.append(error)
                connection.close()

            thread = threading.Thread(target=twin)
            thread.start()
            thread.join()
            assert len(errors) == 1

        leased(body, lease=0.3)()

    def test_that_finds_another_owner_stops_the_next_step_before_it_runs(self) -> None:
        from idempotency.ownership import current

        def body() -> None:
            lease = current.get()
            assert lease is not None
            take_over()
            wait_for(lambda: lease.lost)
            step("one", lambda: pytest.fail("ran"))

        with pytest.raises(LeaseLost):
            leased(body, lease=0.3)()

    def test_that_stood_still_has_the_lease_checked_before_a_step(self) -> None:
        """As after a pause of the whole process, in which the thread has not run yet."""
        from idempotency.ownership import current

        def body() -> None:
            lease = current.get()
            assert lease is not None
            lease._extended_at -= 3600
            take_over()
            step("one", lambda: pytest.fail("ran"))

        with pytest.raises(LeaseLost):
            leased(body, lease=3600)()

    def test_ends_with_the_work_and_closes_its_connection(self) -> None:
        def body() -> None:
            before = record().lease_expires_at
            wait_for(lambda: record().lease_expires_at != before)

        threads = threading.active_count()
        leased(body, lease=0.3)()
        assert threading.active_count() == threads
        wait_for(lambda: sessions() == 0)


def sessions() -> int:
    """Other sessions that have extended a lease last."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND query LIKE '%%lease_expires_at = now%%'"
        )
        [count] = cursor.fetchone()
    return int(count)


class TestTransactions:
    @pytest.mark.django_db
    def test_a_test_case_may_wrap_it(self) -> None:
        assert connection.in_atomic_block
        assert leased(lambda: step("one", lambda: 1))() == 1

    @pytest.mark.django_db
    def test_inside_an_open_transaction_in_a_test_case_it_is_refused(self) -> None:
        with pytest.raises(ImproperlyUsed, match="open transaction"), transaction.atomic():
            leased(list)()

    @pytest.mark.django_db(transaction=True)
    def test_inside_an_open_transaction_it_is_refused(self) -> None:
        with pytest.raises(ImproperlyUsed, match="'default'"), transaction.atomic():
            leased(list)()

    @pytest.mark.django_db(transaction=True)
    def test_without_autocommit_it_is_refused(self) -> None:
        transaction.set_autocommit(False)
        try:
            with pytest.raises(ImproperlyUsed, match="open transaction"):
                leased(list)()
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)

    @pytest.mark.django_db(transaction=True, databases=["default", "other"])
    def test_inside_an_open_transaction_on_another_database_it_runs(self) -> None:
        with transaction.atomic(using="other"):
            assert leased(lambda: 7)() == 7
        assert connections["other"].in_atomic_block is False

    @pytest.mark.django_db
    def test_calling_itself_is_refused(self) -> None:
        def body() -> None:
            guarded()

        guarded = leased(body)
        with pytest.raises(ReentrantUse):
            guarded()


@pytest.mark.django_db
class TestGuard:
    def test_without_a_key_is_refused_outside_a_task(self) -> None:
        with pytest.raises(KeyMissing):
            idempotent(namespace="tests", mode="leased")(lambda: None)()

    def test_the_lease_has_a_default(self, settings: Any) -> None:
        settings.IDEMPOTENCY_LEASE = 1000

        def body() -> None:
            stored = record()
            assert stored.lease_expires_at is not None
            assert stored.lease_expires_at - stored.created_at == timedelta(seconds=1000)

        leased(body)()

    def test_a_failure_for_good_is_remembered(self) -> None:
        guarded = leased(lambda: 1 / 0, on_failed="raise")
        with pytest.raises(ZeroDivisionError):
            guarded()
        with pytest.raises(StoredFailure, match="ZeroDivisionError: division by zero"):
            guarded()

    def test_a_store_without_an_address_is_refused(self) -> None:
        with pytest.raises(ImproperlyUsed, match="IDEMPOTENCY_REDIS_URL"):
            leased(list, store="redis")()

    @pytest.mark.parametrize(
        ("options", "error"),
        [({"lease": 0}, ValueError), ({"max_attempts": 0}, ValueError), ({"mode": "x"}, TypeError)],
    )
    def test_wrong_options_are_found_at_decoration(
        self, options: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            leased(list, **options)

    def test_atomic_mode_refuses_what_leased_mode_left(self) -> None:
        atomic = leased(list, mode="atomic")
        IdempotencyKey.objects.all().claim_lease(_operation(), _terms(), "0" * 32, "owner")
        with pytest.raises(KeyInProgress):
            atomic()
        IdempotencyKey.objects.all().settle(_operation(), "0" * 32, State.OUTCOME_UNKNOWN)
        with pytest.raises(OutcomeUnknown):
            atomic()
        IdempotencyKey.objects.all().resolve(retry=True)
        assert atomic() == []
        stored = record()
        assert (stored.state, stored.token, stored.attempt) == (State.COMPLETED, None, 1)

    def test_leased_mode_replays_what_atomic_mode_left(self) -> None:
        assert leased(lambda: 7, mode="atomic")() == 7
        assert leased(lambda: 8)() == 7

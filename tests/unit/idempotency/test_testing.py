"""The test kit: what it finds in operations that only look idempotent, and leaves in others."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import RequestFactory, TestCase
from django.utils import timezone
from redis import Redis

from idempotency import derived_key, fenced, idempotent, idempotent_view, make_key, step
from idempotency.exceptions import ImproperlyUsed, KeyInProgress, KeyMissing, KeyReused
from idempotency.models import IdempotencyKey
from idempotency.testing import assert_exactly_once, override_idempotency, travel
from idempotency.testing.exactly_once import _typed
from outbox.models import OutboxMessage
from sample_project.guide.models import Credit, Player, Sale
from sample_project.guide.tasks import add_points, give_credit, import_sales
from tests.integration.guide import flawed
from tests.project.models import Effect
from tests.project.tasks import record, record_once, record_once_per_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sample_project.servers import ValkeyServer

pytestmark = pytest.mark.django_db(transaction=True)


def effect(value: Any = None) -> Any:
    Effect.objects.create(label="effect")
    return value


def refuse() -> None:
    effect()
    raise RuntimeError("refused")


@pytest.fixture
def tables() -> Iterator[None]:
    """The tables of the flawed samples."""
    with connection.cursor() as cursor:
        cursor.execute(flawed.TABLES)
        cursor.execute("INSERT INTO flawed_scores VALUES (1, 0)")
    yield
    with connection.cursor() as cursor:
        for line in flawed.TABLES.strip().splitlines():
            cursor.execute(f"DROP TABLE {line.split()[2]}")


@pytest.fixture
def redis(valkey: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(valkey.url_of(1022)) as client:
        client.flushdb()
        yield client
        client.flushdb()


# T.2: one call after the other these two pass.
PASS_IN_A_ROW: dict[str, Callable[[], Any]] = {
    "check before execute": lambda: flawed.notify("n1", "ada", effect),
    "idempotency keys": lambda: flawed.charge(1, 10.0, effect),
}


@pytest.mark.parametrize("sample", PASS_IN_A_ROW.values(), ids=PASS_IN_A_ROW)
def test_t2_calls_in_a_row_find_nothing_and_racers_do(
    tables: None, sample: Callable[[], Any]
) -> None:
    sample()
    sample()
    assert Effect.objects.count() == 1, "the usual test would do"
    Effect.objects.all().delete()
    flawed.execute("DELETE FROM flawed_notifications")
    flawed.execute("DELETE FROM flawed_results")
    with pytest.raises(
        AssertionError, match=r"([2-8]) effects instead of 1: \1 when 8 raced, 0 in "
    ):
        assert_exactly_once(sample, effects=Effect.objects.count)


@pytest.mark.parametrize("sample", PASS_IN_A_ROW.values(), ids=PASS_IN_A_ROW)
def test_t2_they_are_found_without_a_probe_too(tables: None, sample: Callable[[], Any]) -> None:
    with pytest.raises(AssertionError, match=r"[2-8] effects instead of 1"):
        assert_exactly_once(sample)


def test_the_loser_of_an_insert_has_charged_before_it_failed(tables: None) -> None:
    with pytest.raises(AssertionError) as told:
        assert_exactly_once(lambda: flawed.charge(1, 10.0, effect), effects=Effect.objects.count)
    assert "of 9 calls raised IntegrityError: duplicate key value" in str(told.value)
    assert type(told.value.__cause__).__name__ == "IntegrityError"


@pytest.mark.database
def test_a_race_is_found_even_if_one_racer_is_late(tables: None) -> None:
    lock, late = threading.Lock(), iter([True])

    def operation() -> None:
        with lock:
            is_late = next(late, False)
        if is_late:
            threading.Event().wait(0.4)
        flawed.notify("n1", "ada", effect)

    with pytest.raises(AssertionError, match="2 effects instead of 1: 2 when 2 raced"):
        assert_exactly_once(operation, racers=2)


def test_nobody_is_waited_for_who_waits_for_something_else() -> None:
    first_is_done = threading.Event()
    lock, first = threading.Lock(), iter([True])

    @idempotent(key="k", wait=20)
    def once() -> None:
        effect()

    def operation() -> None:
        with lock:
            is_first = next(first, False)
        if not is_first:
            assert first_is_done.wait(20)
        once()
        if is_first:
            first_is_done.set()

    assert_exactly_once(operation, racers=3)


@pytest.mark.database
def test_p1_score_plus_points_is_no_upsert(tables: None) -> None:
    with pytest.raises(AssertionError) as told:
        assert_exactly_once(lambda: flawed.update_score(1, 10))
    assert str(told.value) == (
        "9 effects instead of 1: 8 when 8 raced, 1 in 1 later calls.\n"
        "Changed rows: 9 x update flawed_scores."
    )


def test_s2_a_table_whose_row_says_failed_lets_all_run(tables: None) -> None:
    with pytest.raises(RuntimeError):
        flawed.with_table("k", refuse)
    Effect.objects.all().delete()
    with pytest.raises(AssertionError, match="9 effects instead of 1"):
        assert_exactly_once(lambda: flawed.with_table("k", effect), effects=Effect.objects.count)


def test_s2_a_table_that_says_processing_raises_what_is_not_retried(tables: None) -> None:
    with pytest.raises(AssertionError, match="raised RuntimeError: k is being processed"):
        assert_exactly_once(lambda: flawed.with_table("k", effect), effects=Effect.objects.count)


def test_s3_messages_that_are_marked_as_seen_afterwards(redis: Redis) -> None:
    with pytest.raises(AssertionError) as told:
        assert_exactly_once(lambda: flawed.seen_message(redis, {"id": 1}, effect))
    assert re.match("[2-8] effects instead of 1", str(told.value))
    assert "x 'Duplicate message skipped' (str)" in str(told.value)


def test_s1_a_lock_is_no_deduplication(redis: Redis) -> None:
    def deliver() -> object:
        try:
            return flawed.under_lock(redis, "lock", "task-id", effect)
        except RuntimeError as error:
            raise KeyInProgress(str(error)) from error

    with pytest.raises(AssertionError, match=r"[2-9] effects instead of 1"):
        assert_exactly_once(deliver)


def test_c_the_payment_sample_never_runs_again_after_a_failure(tables: None) -> None:
    def refused() -> None:
        raise flawed.GatewayRefused

    with pytest.raises(flawed.GatewayRefused):
        flawed.pay("k", 1, refused)
    with pytest.raises(AssertionError, match="9 of 9 calls raised IntegrityError"):
        assert_exactly_once(lambda: flawed.pay("k", 1, effect))


def test_ours_pass() -> None:
    player, event, credit = Player.objects.create(name="Ada"), uuid4(), uuid4()
    assert_exactly_once(lambda: add_points(event, player.pk, 10))
    assert player.score == 10
    assert assert_exactly_once(lambda: give_credit(credit, "ada", Decimal("9.90"))) == Decimal(
        "9.9"
    )
    assert_exactly_once(
        lambda: import_sales("november.csv", [("tea", 3), ("pot", 1)]),
        effects=Sale.objects.count,
        expected=2,
    )


def test_deliveries_of_one_message_pass() -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s("delivery"))
    assert_exactly_once(
        lambda: record_once.apply(("delivery",), task_id=str(message.pk), throw=True).get()
    )
    assert Effect.objects.count() == 1


@pytest.mark.database
@pytest.mark.parametrize("mode", ["atomic", "leased"])
def test_both_modes_pass(mode: Any) -> None:
    @idempotent(key="k", mode=mode)
    def operation() -> int:
        return int(Effect.objects.create(label="guarded").pk)

    assert assert_exactly_once(operation) == Effect.objects.get().pk


def test_racers_that_wait_for_the_winner_pass() -> None:
    @idempotent(key="k", wait=20)
    def operation() -> None:
        effect()

    assert_exactly_once(operation)


def test_a_view_passes_and_its_409_is_retried() -> None:
    @idempotent_view(anonymous=lambda request: "anyone")
    def view(request: HttpRequest) -> JsonResponse:
        return JsonResponse({"effect": Effect.objects.create(label="view").pk}, status=201)

    def post() -> HttpResponse:
        return view(RequestFactory().post("/", headers={"Idempotency-Key": "k"}))

    assert assert_exactly_once(post).status_code == 201


def test_an_unguarded_view_fails() -> None:
    def view() -> JsonResponse:
        return JsonResponse({"effect": Effect.objects.create(label="view").pk})

    with pytest.raises(AssertionError, match=r'Results differ: 1 x 200 b.*"effect"'):
        assert_exactly_once(view)


def test_a_message_too_many_is_an_effect() -> None:
    def operation() -> None:
        with transaction.atomic():
            OutboxMessage.objects.enqueue(record.s("each time"))

    with pytest.raises(AssertionError, match="9 x insert outbox_outboxmessage"):
        assert_exactly_once(operation)


def test_a_receipt_is_no_effect() -> None:
    with transaction.atomic():
        messages = [OutboxMessage.objects.enqueue(record_once_per_label.s("a")) for _ in range(9)]
    OutboxMessage.objects.settle([message.pk for message in messages])
    ids = iter([message.pk for message in messages] + [messages[0].pk] * 9)
    lock = threading.Lock()

    def deliver() -> Any:
        with lock:
            id = str(next(ids))
        return record_once_per_label.apply(("a",), task_id=id, throw=True).get()

    assert_exactly_once(deliver)


@pytest.mark.database
def test_what_is_rolled_back_or_changes_nothing_is_no_effect() -> None:
    Effect.objects.create(label="same")

    @idempotent(key="k")
    def once() -> None:
        effect()

    def operation() -> None:
        Effect.objects.filter(label="same").update(label="same")
        with transaction.atomic():
            effect()
            transaction.set_rollback(True)
        once()

    assert_exactly_once(operation)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_the_tables_of_another_alias() -> None:
    @idempotent(key="k", using="other")
    def once() -> None:
        Effect.objects.using("other").create(label="other")

    def operation() -> None:
        once()
        effect()

    assert_exactly_once(operation, using="other")
    with pytest.raises(AssertionError, match="9 effects instead of 1"):
        assert_exactly_once(operation)


def test_no_effect_fails_too() -> None:
    with pytest.raises(AssertionError, match=r"0 effects instead of 1(.|\n)*none(.|\n)*used up"):
        assert_exactly_once(lambda: None)


def test_what_is_outside_is_counted_by_a_probe() -> None:
    sent: list[str] = []

    @idempotent(key="k", mode="leased")
    def send() -> None:
        sent.append("mail")

    assert_exactly_once(send, effects=lambda: len(sent))
    with pytest.raises(AssertionError, match="9 effects instead of 1"):
        assert_exactly_once(lambda: sent.append("mail"), effects=lambda: len(sent))


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (0, False),
        (0, None),
        ("", None),
        ([], ()),
        (Decimal("10.00"), 10.0),
        (Decimal("10.00"), "10.00"),
        ({"total": Decimal(1)}, {"total": 1}),
        ({1: "a"}, {"1": "a"}),
        ([1, (2,)], [1, [2]]),
        ({1}, {1.0}),
        ("Sent", "Already sent"),
    ],
)
def test_t3_results_that_differ_in_value_or_type_fail(first: Any, later: Any) -> None:
    lock, values = threading.Lock(), iter([first])

    def operation() -> Any:
        with lock:
            value = next(values, later)
        once()
        return value

    @idempotent(key="k", wait=20)
    def once() -> None:
        effect()

    with pytest.raises(AssertionError) as told:
        assert_exactly_once(operation, racers=2)
    assert str(told.value).startswith("Results differ: ")
    assert f"{later!r} ({type(later).__name__})" in str(told.value)


@dataclass
class Point:
    x: Any


@pytest.mark.parametrize(
    "value",
    [0, False, None, "", [], {}, Decimal("1.10"), float("nan"), {1, 2}, ({"a": [1]},), Point(1)],
)
def test_t3_equal_results_pass(value: Any) -> None:
    @idempotent(key="k", wait=20)
    def once() -> None:
        effect()

    def operation() -> Any:
        once()
        return value

    assert assert_exactly_once(operation, racers=2) is value


def test_the_fields_of_a_dataclass_are_compared_by_type() -> None:
    assert _typed(Point(1)) == _typed(Point(1))
    assert _typed(Point(1)) != _typed(Point(1.0))


def test_a_redelivery_that_raises_fails() -> None:
    calls: list[int] = []

    @idempotent(key="k")
    def once() -> None:
        effect()

    def operation() -> None:
        once()
        calls.append(1)
        if len(calls) == 9:
            raise SystemExit("late")

    with pytest.raises(AssertionError, match="1 of 9 calls raised SystemExit: late"):
        assert_exactly_once(operation)


def test_what_stays_in_progress_fails() -> None:
    def operation() -> None:
        raise KeyInProgress("for ever")

    with pytest.raises(AssertionError, match="9 of 9 calls raised KeyInProgress: for ever"):
        assert_exactly_once(operation)


def test_a_deadlock_ends() -> None:
    let_go = threading.Event()
    with pytest.raises(AssertionError, match=r"8 of 8 calls have not ended after 0.2 s"):
        assert_exactly_once(let_go.wait, timeout=0.2)
    let_go.set()


def test_one_is_no_race() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        assert_exactly_once(effect, racers=1)


@pytest.mark.database
def test_the_triggers_are_gone_afterwards() -> None:
    with pytest.raises(AssertionError):
        assert_exactly_once(effect)
    left = flawed.execute(
        "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'idempotency%%'"
        " UNION ALL SELECT count(*) FROM pg_class WHERE relname LIKE 'idempotency_testing%%'"
        " UNION ALL SELECT count(*) FROM pg_proc WHERE proname LIKE 'idempotency_testing%%'"
    )
    assert left == [(0,), (0,), (0,)]


def test_racers_leave_no_connection_behind() -> None:
    names = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"

    @idempotent(key="k")
    def operation() -> None:
        effect()

    before = flawed.execute(names)
    assert_exactly_once(operation)
    assert flawed.execute(names) <= before


class Inside(TestCase):
    def test_a_test_inside_a_transaction_is_refused(self) -> None:
        with pytest.raises(ImproperlyUsed, match=r"django_db\(transaction=True\)"):
            assert_exactly_once(effect)


def test_guards_can_be_switched_off() -> None:
    @idempotent(key="{label}")
    def operation(label: str) -> int:
        assert connection.in_atomic_block
        return int(Effect.objects.create(label=label).pk)

    with override_idempotency(enabled=False):
        assert operation("a") != operation("a")
        with override_idempotency(enabled=True):
            assert operation("b") == operation("b")
        assert IdempotencyKey.objects.count() == 1
        for _ in range(2):
            outcome = IdempotencyKey.objects.run_once("k", effect, namespace="n")
            assert not outcome.replayed
    assert Effect.objects.count() == 5
    assert operation("c") == operation("c")


def test_switched_off_they_are_off_in_each_thread_and_on_again_after_an_error() -> None:
    def fail() -> None:
        with override_idempotency(enabled=False):
            thread = threading.Thread(target=unkeyed)
            thread.start()
            thread.join()
            raise LookupError

    ran: list[int] = []

    @idempotent
    def unkeyed() -> None:
        with transaction.atomic():
            ran.append(1)
        connection.close()

    with pytest.raises(LookupError):
        fail()
    assert ran == [1]
    with pytest.raises(KeyMissing):
        unkeyed()


@override_idempotency(enabled=False)
def test_switched_off_leased_work_has_its_words() -> None:
    keys: list[str] = []

    @idempotent(key="k", mode="leased")
    def operation() -> int:
        keys.append(derived_key("charge"))
        with fenced():
            assert connection.in_atomic_block
            step("book", effect)
        return step("charge", lambda: 7) + step("charge", lambda: 8)

    assert operation() == 14
    assert operation() == 14
    assert len(set(keys)) == 2
    assert Effect.objects.count() == 2
    assert not IdempotencyKey.objects.exists()


@override_idempotency(enabled=False)
def test_switched_off_a_step_that_was_rolled_back_runs_again() -> None:
    @idempotent(key="k", mode="leased")
    def operation() -> int:
        step("first", lambda: effect(1))
        for failure in (LookupError, None):
            with suppress(LookupError), fenced():
                step("book", effect)
                if failure is not None:
                    raise failure
        return step("first", lambda: 0)

    assert operation() == 1
    assert Effect.objects.count() == 2


@idempotent(key="{label}")
def labelled(label: str) -> int:
    return int(Effect.objects.create(label=label).pk)


@override_idempotency(enabled=False)
class SwitchedOff(TestCase):
    def test_each_test_of_the_class(self) -> None:
        assert labelled("a") != labelled("a")


class SwitchedOffAsync(TestCase):
    @override_idempotency(enabled=False)
    async def test_an_async_test(self) -> None:
        assert await sync_to_async(labelled)("a") != await sync_to_async(labelled)("a")


@override_idempotency(enabled=False)
def test_switched_off_a_view_needs_no_header_and_still_rolls_back() -> None:
    @idempotent_view
    def view(request: HttpRequest) -> HttpResponse:
        effect()
        return HttpResponse(status=int(request.POST["status"]))

    for status in (201, 201, 422):
        assert view(RequestFactory().post("/", {"status": status})).status_code == status
    assert Effect.objects.count() == 2
    assert not IdempotencyKey.objects.exists()


@pytest.mark.database
def test_a_key_expires_when_time_passes() -> None:
    credit = uuid4()
    give_credit(credit, "ada", Decimal(1))
    travel(timedelta(days=6))
    give_credit(credit, "ada", Decimal(1))
    assert Credit.objects.count() == 1
    travel(timedelta(days=1, seconds=1))
    assert IdempotencyKey.objects.purge() == 1
    give_credit(credit, "ada", Decimal(1))
    assert Credit.objects.count() == 2


def test_a_lease_goes_stale_when_time_passes() -> None:
    later = timezone.now() + timedelta(seconds=60)
    record = IdempotencyKey.objects.create(
        namespace="n",
        key="k",
        state=IdempotencyKey.State.IN_PROGRESS,
        token=uuid4(),
        created_at=timezone.now(),
        lease_expires_at=later,
    )
    assert IdempotencyKey.objects.release() == 0
    travel(61)
    record.refresh_from_db()
    assert record.lease_expires_at == later - timedelta(seconds=61)
    assert record.finished_at is None
    assert IdempotencyKey.objects.release() == 1


def test_a_message_is_due_when_time_passes() -> None:
    with transaction.atomic():
        OutboxMessage.objects.enqueue(record_once.s("later").set(countdown=3600))
    assert not OutboxMessage.objects.due().exists()
    travel(3601)
    assert OutboxMessage.objects.due().count() == 1


def test_time_does_not_pass_backwards() -> None:
    with pytest.raises(ValueError, match="by="):
        travel(timedelta(days=-1))


def test_make_key_and_fingerprint_hold_in_a_race() -> None:
    """A racer with other arguments is a mistake that is told."""
    lock, amounts = threading.Lock(), iter(range(100))

    @idempotent(key=lambda amount: make_key("n", "k"), wait=20)
    def operation(amount: int) -> None:
        effect()

    def deliver() -> None:
        with lock:
            amount = next(amounts)
        operation(amount)

    with pytest.raises(AssertionError, match=KeyReused.__name__):
        assert_exactly_once(deliver)

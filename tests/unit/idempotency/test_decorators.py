"""What the decorator accepts, which key and namespace a call has, and what it leaves alone."""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery.signals import task_retry
from django.db import transaction

from idempotency import idempotent
from idempotency.decorators import guard_of
from idempotency.exceptions import KeyMissing, KeyReused
from idempotency.models import IdempotencyKey
from tests.project.celery import app
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def task(function: Callable[..., Any], **options: Any) -> Iterator[Any]:
    """Make a task and forget it afterwards."""
    decorator: Any = app.task(shared=False, **options)
    made = decorator(function)
    try:
        yield app.tasks[made.name]
    finally:
        app.tasks.unregister(made.name)


def charge(order_id: Any, amount: int = 5) -> str:
    Effect.objects.create(label=str(order_id))
    return f"{order_id} {amount}"


@pytest.mark.django_db
class TestFunctions:
    def test_runs_once_per_key(self) -> None:
        guarded = idempotent(key="charge:{order_id}")(charge)
        assert guarded(1) == guarded(order_id=1) == guarded(1, 5) == "1 5"
        assert guarded(2) == "2 5"
        assert Effect.objects.count() == 2
        assert set(IdempotencyKey.objects.values_list("key", flat=True)) == {"charge:1", "charge:2"}

    def test_other_arguments_are_a_mismatch(self) -> None:
        guarded = idempotent(key="{order_id}")(charge)
        guarded(1)
        with pytest.raises(KeyReused):
            guarded(1, 6)
        assert Effect.objects.count() == 1

    def test_without_a_key_it_is_refused(self) -> None:
        with pytest.raises(KeyMissing, match=r"test_decorators\.charge has no key"):
            idempotent(charge)(1)

    @pytest.mark.parametrize("given", ["{order_id}", lambda order_id: order_id])
    @pytest.mark.parametrize("nothing", [None, ""])
    def test_with_an_empty_key_it_is_refused(self, given: Any, nothing: Any) -> None:
        with pytest.raises(KeyMissing):
            idempotent(key=given)(charge)(nothing)
        assert not Effect.objects.exists()

    def test_the_namespace_is_its_name(self) -> None:
        idempotent(key="{order_id}")(charge)(1)
        assert IdempotencyKey.objects.get().namespace == f"{__name__}.charge"

    def test_an_explicit_namespace_survives_a_renaming(self) -> None:
        def renamed(order_id: Any, amount: int = 5) -> str:
            return charge(order_id, amount)

        for function in (charge, renamed):
            idempotent(namespace="payments", key="{order_id}")(function)(1)
        assert Effect.objects.count() == 1

    def test_the_scope_keeps_keys_apart(self) -> None:
        @idempotent(key="{order_id}", scope="tenant:{tenant}")
        def function(tenant: str, order_id: int) -> str:
            return charge(order_id)

        function("a", 1)
        function("b", 1)
        assert Effect.objects.count() == 2
        assert set(IdempotencyKey.objects.values_list("scope", flat=True)) == {
            "tenant:a",
            "tenant:b",
        }
        with pytest.raises(KeyMissing, match="tenant"):
            function("", 1)

    def test_a_method_is_guarded_without_its_self(self) -> None:
        class Shop:
            def __init__(self, name: str) -> None:
                self.name = name

            @idempotent(key="{self.name}:{order_id}")
            def book(self, order_id: int) -> str:
                return charge(f"{self.name}{order_id}")

            @classmethod
            @idempotent(key="{order_id}")
            def close(cls, order_id: int) -> str:
                return charge(order_id)

            @staticmethod
            @idempotent(key="{order_id}")
            def open(order_id: int) -> str:
                return charge(order_id)

        for _ in range(2):
            assert Shop("a").book(1) == "a1 5"
            assert Shop("b").book(1) == "b1 5"
            assert Shop.close(2) == "2 5"
            assert Shop.open(3) == "3 5"
        assert Effect.objects.count() == 4

    def test_on_completed_execute_runs_again_and_keeps_the_last_result(self) -> None:
        results = iter("ab")
        guarding = idempotent(namespace="tests.again", key="k", on_completed="execute")
        guarded = guarding(lambda: next(results))
        assert (guarded(), guarded()) == ("a", "b")
        assert IdempotencyKey.objects.count() == 1

    def test_on_completed_raise_refuses_the_duplicate(self) -> None:
        guarded = idempotent(key="{order_id}", on_completed="raise")(charge)
        guarded(1)
        with pytest.raises(KeyReused, match="executed before"):
            guarded(1)
        assert Effect.objects.count() == 1

    def test_the_ttl_counts_from_the_end(self) -> None:
        idempotent(key="{order_id}", ttl=60)(charge)(1)
        row = IdempotencyKey.objects.get()
        assert row.finished_at
        assert row.expires_at
        assert (row.expires_at - row.finished_at).total_seconds() == pytest.approx(60, abs=0.1)

    def test_the_setting_is_the_default_ttl(self, settings: Any) -> None:
        guarded = idempotent(key="{order_id}")(charge)
        settings.IDEMPOTENCY_TTL = 30
        guarded(1)
        row = IdempotencyKey.objects.get()
        assert row.finished_at
        assert row.expires_at
        assert (row.expires_at - row.finished_at).total_seconds() == pytest.approx(30, abs=0.1)

    def test_nested_guards_share_the_transaction(self) -> None:
        inner = idempotent(key="{order_id}")(charge)

        @idempotent(key="outer")
        def outer() -> None:
            inner(1)
            raise RuntimeError

        with pytest.raises(RuntimeError):
            outer()
        assert not IdempotencyKey.objects.exists()


@pytest.mark.django_db(databases=["default", "other"])
def test_using_chooses_the_transaction() -> None:
    @idempotent(key="k", using="other")
    def function() -> bool:
        return bool(transaction.get_connection("other").in_atomic_block)

    assert function()
    assert IdempotencyKey.objects.using("other").exists()
    assert not IdempotencyKey.objects.using("default").exists()
    guard = guard_of(function)
    assert guard
    assert guard.using == "other"


def test_looks_like_the_function() -> None:
    guarded = idempotent(charge)
    assert guarded.__name__ == "charge"
    assert guarded.__doc__ == charge.__doc__
    # What Celery reads, which does not follow __wrapped__.
    assert inspect.getfullargspec(guarded) == inspect.getfullargspec(charge)


class Charge:
    def __call__(self, order_id: int) -> int:
        return order_id


async def coroutine() -> None: ...


def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (coroutine, "coroutine is async"),
        (generator, "generator is a generator"),
        (staticmethod(charge), "under @staticmethod"),
        (classmethod(charge), "under @classmethod"),
        (Effect, "goes on a function"),
        ("charge", "goes on a function"),
        (functools.partial(charge, 1), "goes on a function"),
        (Charge(), "goes on a function"),
        (lambda order_id: order_id, "has no name of its own: give it a namespace="),
    ],
)
def test_what_cannot_be_guarded_is_refused(function: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        idempotent(function)


def test_it_goes_under_the_decorator_that_makes_a_task() -> None:
    with (
        task(charge, name="tests.wrong_order") as made,
        pytest.raises(TypeError, match="under the decorator that makes charge a task"),
    ):
        idempotent(made)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"lease": 60}, TypeError, 'lease= belongs to mode="leased"'),
        ({"on_stale": "block"}, TypeError, "on_stale= belongs"),
        ({"max_attempts": 3}, TypeError, "max_attempts= belongs"),
        ({"store": "redis"}, TypeError, "store=.* belongs"),
        ({"key": "{oder_id}"}, TypeError, "'oder_id', which is not an argument"),
        ({"scope": "{oder_id}"}, TypeError, "scope='{oder_id}' asks"),
        ({"ttl": 0}, ValueError, "ttl= must be at least"),
        ({"ttl": timedelta(days=36_501)}, ValueError, "ttl= must be at most"),
        ({"mode": "leased", "lease": timedelta.max}, ValueError, "lease= must be at most"),
        ({"wait": -1}, ValueError, "wait= must be at least"),
        ({"on_completed": "ignore"}, TypeError, "on_completed= is one of replay, execute, raise"),
        ({"on_in_progress": "ignore"}, TypeError, "on_in_progress= is one of"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_wrong_options_are_found_at_decoration(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        idempotent(**options)(charge)


class TestGuardOf:
    def test_a_plain_function_has_none(self) -> None:
        assert guard_of(charge) is None
        assert guard_of(None) is None

    def test_a_function_has_one_through_other_decorators(self) -> None:
        guarded = idempotent(charge)

        @functools.wraps(guarded)
        def wrapper() -> None: ...

        assert guard_of(guarded) is not None
        assert guard_of(wrapper) is guard_of(guarded)

    @pytest.mark.parametrize(
        "options", [{}, {"bind": True}, {"autoretry_for": (RuntimeError,)}], ids=repr
    )
    def test_a_task_has_its_functions(self, options: dict[str, Any]) -> None:
        guarded = idempotent(charge)
        with task(guarded, name="tests.guarded", **options) as made:
            assert guard_of(made) is guard_of(guarded)

    def test_a_shared_task_has_its_functions(self) -> None:
        from tests.project.tasks import record, record_once

        assert guard_of(record_once) is not None
        assert guard_of(record) is None


@pytest.mark.django_db
class TestTasks:
    def test_a_direct_call_without_key_is_a_plain_call(self) -> None:
        with task(idempotent(charge), name="tests.direct") as direct:
            assert direct(1) == direct.run(1) == "1 5"
        assert Effect.objects.count() == 2
        assert not IdempotencyKey.objects.exists()

    def test_a_direct_call_with_key_has_the_tasks_namespace(self) -> None:
        with task(idempotent(key="{order_id}")(charge), name="tests.direct") as direct:
            direct(1)
            direct.run(1)
            direct.apply((1,))
        assert Effect.objects.count() == 1
        row = IdempotencyKey.objects.get()
        assert (row.namespace, row.message_id) == ("tests.direct", "")

    def test_the_message_id_is_the_default_key(self) -> None:
        with task(idempotent(charge), name="tests.eager") as eager:
            first = eager.apply((1,), task_id="message")
            again = eager.apply((1,), task_id="message")
            other = eager.apply((1,), task_id="other")
        assert first.get() == again.get() == other.get() == "1 5"
        assert Effect.objects.count() == 2
        row = IdempotencyKey.objects.get(key="message")
        assert (row.namespace, row.message_id) == ("tests.eager", "message")

    def test_a_business_key_keeps_the_message_id(self) -> None:
        with task(idempotent(key="{order_id}")(charge), name="tests.eager") as eager:
            eager.apply((1,), task_id="first")
            eager.apply((1,), task_id="second")
        row = IdempotencyKey.objects.get()
        assert (row.key, row.message_id) == ("1", "first")

    def test_a_bound_task_is_guarded_without_its_self(self) -> None:
        def bound(this: Any, order_id: int) -> str:
            return charge(f"{this.name} {order_id}")

        with task(idempotent(key="{order_id}")(bound), name="tests.bound", bind=True) as made:
            assert made.apply((1,)).get() == made.apply((1,)).get() == "tests.bound 1 5"
        assert Effect.objects.count() == 1

    def test_a_helper_in_a_task_does_not_take_its_message_id(self) -> None:
        helper = idempotent(charge)

        def body() -> str:
            return helper(1)

        with task(body, name="tests.outer") as outer:
            result = outer.apply(task_id="message")
        assert isinstance(result.result, KeyMissing)

    def test_another_task_called_in_a_task_is_a_plain_call(self) -> None:
        @idempotent
        def body() -> str:
            return str(inner(1))

        with (
            task(idempotent(charge), name="tests.inner") as inner,
            task(body, name="tests.outer") as outer,
        ):
            outer.apply(task_id="message").get()
        assert IdempotencyKey.objects.get().namespace == "tests.outer"

    def test_celery_still_checks_the_arguments_of_a_call(self) -> None:
        with task(idempotent(charge), name="tests.typed") as typed, pytest.raises(TypeError):
            typed.delay()

    def test_a_mismatch_fails_and_is_not_retried(self) -> None:
        attempts: list[str] = []

        def told(**kwargs: Any) -> None:
            attempts.append("retry")

        task_retry.connect(told)
        try:
            with task(
                idempotent(charge), name="tests.retried", autoretry_for=(Exception,)
            ) as retried:
                retried.apply((1,), task_id="message")
                result = retried.apply((2,), task_id="message")
        finally:
            task_retry.disconnect(told)
        assert isinstance(result.result, KeyReused)
        assert result.state == "FAILURE"
        assert not attempts

    def test_autoretry_still_retries_the_tasks_own_errors(self) -> None:
        ran: list[int] = []

        def failing() -> str:
            ran.append(1)
            Effect.objects.create(label="failing")
            if len(ran) == 1:
                raise RuntimeError
            return "done"

        with task(
            idempotent(failing), name="tests.retried", autoretry_for=(RuntimeError,)
        ) as retried:
            assert retried.apply(task_id="message").get() == "done"
        assert Effect.objects.count() == 1
        assert IdempotencyKey.objects.get().key == "message"

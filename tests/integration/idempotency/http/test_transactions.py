"""Key, business rows, messages and response commit together, or none of them does."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections
from django.db.transaction import TransactionManagementError

from idempotency.models import IdempotencyKey
from outbox.models import OutboxMessage
from tests.helpers import wait_for
from tests.integration.idempotency.http import views
from tests.integration.idempotency.http.conftest import client_of
from tests.integration.idempotency.http.test_answers import assert_problem, assert_replay, in_thread
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.contrib.auth.models import User
    from django.test import Client

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]

RACERS = 16


@pytest.fixture(params=[False, True], ids=["autocommit", "ATOMIC_REQUESTS"])
def atomic_requests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Each test runs in both worlds."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", request.param)
    return bool(request.param)


def seen_elsewhere(query: str) -> int:
    """Count what has committed, over another connection."""
    return run_in_thread(lambda: count(query))


def count(query: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {query}")  # noqa: S608
        return int(cursor.fetchone()[0])


def run_in_thread(target: Callable[[], int]) -> int:
    answers: list[int] = []
    in_thread(lambda: answers.append(target())).join()
    return answers[0]


def assert_committed(effects: int, keys: int) -> None:
    assert seen_elsewhere("project_effect") == effects
    assert seen_elsewhere("idempotency_idempotencykey") == keys


def test_racing_twins_take_effect_once(alice: User, atomic_requests: bool) -> None:
    """One of them executes; the others are told so while it does."""
    clients = [client_of(alice) for _ in range(RACERS)]
    barrier = threading.Barrier(RACERS)
    answers: list[Any] = []

    def race(client: Client) -> None:
        try:
            barrier.wait(30)
            answers.append(client.post("/slow/"))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(RACERS) as pool:
        races = [pool.submit(race, client) for client in clients]
        wait_for(lambda: len(answers) == RACERS - 1, message="Not all the others were answered")
        for answer in answers:
            assert_problem(answer, 409, "idempotency-in-progress")
        views.gate.opened.set()
        for finished in races:
            finished.result()
    assert answers[-1].status_code == 201
    assert_replay(answers[-1], clients[0].post("/slow/"))
    assert_committed(effects=1, keys=1)


def test_patient_twin_gets_the_response(alice: User, atomic_requests: bool) -> None:
    answers: list[Any] = []
    first = in_thread(lambda: answers.append(client_of(alice).post("/patient/")))
    assert views.gate.entered.wait(30)
    twin = in_thread(lambda: answers.append(client_of(alice).post("/patient/")))
    wait_for(lambda: count("pg_locks WHERE locktype = 'advisory' AND NOT granted"))
    views.gate.opened.set()
    first.join()
    twin.join()
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.get("Idempotent-Replayed") for answer in answers} == {None, "true"}
    assert answers[0].content == answers[1].content
    assert_committed(effects=1, keys=1)


def test_final_response_commits(client: Client, atomic_requests: bool) -> None:
    assert_replay(client.post("/status/402/"), client.post("/status/402/"))
    assert_committed(effects=1, keys=1)


@pytest.mark.parametrize("status", [400, 409, 500, 503])
def test_other_response_rolls_back(client: Client, atomic_requests: bool, status: int) -> None:
    assert client.post(f"/status/{status}/").status_code == status
    assert_committed(effects=0, keys=0)


def test_exception_rolls_back_and_is_itself(client: Client, atomic_requests: bool) -> None:
    client.raise_request_exception = False
    for _ in range(2):
        response: Any = client.post("/fail/")
        assert response.status_code == 500
        assert response.exc_info[0] is RuntimeError
    assert_committed(effects=0, keys=0)


def test_view_that_spoils_its_transaction(client: Client, atomic_requests: bool) -> None:
    with pytest.raises(TransactionManagementError):
        client.post("/own_transaction_spoiled/")
    assert_committed(effects=0, keys=0)


def test_enqueued_message_is_there_once(client: Client, atomic_requests: bool) -> None:
    first = client.post("/enqueue/")
    for _ in range(3):
        assert_replay(first, client.post("/enqueue/"))
    assert str(OutboxMessage.objects.get().pk) == first.content.decode()
    assert_committed(effects=1, keys=1)


def test_problems_leave_nothing(client: Client, atomic_requests: bool) -> None:
    client.post("/pay/", {"amount": 1})
    assert_problem(client.post("/pay/", {"amount": 2}), 422, "idempotency-key-reused")
    assert_committed(effects=1, keys=1)


@pytest.mark.parametrize("atomic_requests", [True], indirect=True)
def test_failure_of_the_request_takes_the_key_along(client: Client, atomic_requests: bool) -> None:
    """Under ATOMIC_REQUESTS the key commits with the request, not before."""
    with pytest.raises(RuntimeError, match="after the guard"):
        client.post("/then_fails/")
    assert_committed(effects=0, keys=0)


@pytest.mark.parametrize("path", ["/exempt/", "/exempt_below/"])
def test_non_atomic_requests_and_csrf_exempt_are_preserved(
    alice: User, atomic_requests: bool, path: str
) -> None:
    client = client_of(alice)
    client.handler.enforce_csrf_checks = True
    assert_replay(client.post(path), client.post(path))
    assert_committed(effects=1, keys=1)
    handler = WSGIHandler()
    view: Any = getattr(views, path.strip("/"))
    assert view.csrf_exempt
    # Wrapped in a transaction it would be another function.
    assert handler.make_view_atomic(view) is view
    assert (handler.make_view_atomic(views.pay) is views.pay) is not atomic_requests


def test_row_names_what_ran(client: Client) -> None:
    client.post("/pay/")
    record = IdempotencyKey.objects.get()
    assert (record.state, record.key, record.message_id) == ("completed", "k", "")
    assert Effect.objects.count() == 1

"""Handlers of REST framework: who may not call is refused first, and responses are rendered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections
from django.test import Client

from idempotency.models import IdempotencyKey
from tests.integration.idempotency.http import api
from tests.integration.idempotency.http.conftest import client_of
from tests.integration.idempotency.http.test_answers import assert_problem, assert_replay, multipart
from tests.project.models import Effect

if TYPE_CHECKING:
    from django.contrib.auth.models import User

pytestmark = [pytest.mark.django_db, pytest.mark.database]

ALL = ("/api/pay/", "/api/above/", "/api/below/")


def token(user: User | str, **headers: str) -> Client:
    name = user if isinstance(user, str) else user.username
    return client_of(None, Authorization=f"Token {name}", **headers)


def post(client: Client, path: str, data: Any = None) -> Any:
    return client.post(path, data or {"label": "a"}, content_type="application/json")


def effects() -> int:
    return Effect.objects.count()


@pytest.mark.parametrize(
    "path", [*ALL, "/api/decorated/", "/api/orders/", "/api/orders/1/ship/", "/api/orders/1/bill/"]
)
class TestEachKindOfHandler:
    def test_replay_is_byte_identical(self, alice: User, path: str) -> None:
        first, again = post(token(alice), path), post(token(alice), path)
        assert json.loads(first.content)["effect"] == Effect.objects.latest("pk").pk
        assert_replay(first, again)
        assert again["Content-Type"] == first["Content-Type"] == "application/json"
        # The view's own headers are those of now.
        assert again["Allow"] == first["Allow"]
        assert again.get("Vary") == first.get("Vary")
        assert IdempotencyKey.objects.count() == 1

    def test_missing_key(self, alice: User, path: str) -> None:
        client = Client(headers={"Authorization": f"Token {alice.username}"})
        assert_problem(post(client, path), 400, "idempotency-key-missing")
        assert effects() == 0

    def test_user_b_with_user_a_s_key_never_sees_a_s_response(
        self, alice: User, bob: User, path: str
    ) -> None:
        """Both are anonymous to every middleware."""
        first, other = post(token(alice), path), post(token(bob), path)
        assert "Idempotent-Replayed" not in other
        assert other.content != first.content
        scopes = set(IdempotencyKey.objects.values_list("scope", flat=True))
        assert scopes == {f"auth.user:{alice.pk}", f"auth.user:{bob.pk}"}

    def test_caller_without_a_valid_token_gets_401(self, alice: User, path: str) -> None:
        post(token(alice), path)
        for client in (token("mallory"), client_of(None)):
            refused = post(client, path)
            assert refused.status_code == 401
            assert refused["WWW-Authenticate"] == "Token"
        alice.is_active = False
        alice.save()
        assert post(token(alice), path).status_code == 401


@pytest.mark.parametrize("path", ALL)
def test_revoked_caller_gets_403(alice: User, path: str) -> None:
    post(token(alice), path)
    alice.user_permissions.clear()
    again = post(token(alice), path)
    assert again.status_code == 403
    assert "Idempotent-Replayed" not in again


@pytest.mark.parametrize("path", ALL)
def test_throttled_caller_gets_429(alice: User, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = post(token(alice), path)
    with monkeypatch.context() as patched:
        patched.setattr(api.Throttle, "allowed", False)
        again = post(token(alice), path)
    assert (again.status_code, again["Retry-After"]) == (429, "7")
    assert_replay(first, post(token(alice), path))


def test_session_and_token_of_one_user_are_one_scope(alice: User) -> None:
    assert_replay(post(client_of(alice), "/api/pay/"), post(token(alice), "/api/pay/"))


def test_cookies_are_not_replayed(alice: User) -> None:
    assert post(token(alice), "/api/pay/").cookies["basket"].value == "first"
    assert not post(token(alice), "/api/pay/").cookies


@pytest.mark.parametrize("name", api.Falsy.values)
def test_falsy_data_comes_back(alice: User, name: str) -> None:
    path = f"/api/falsy/{name}/"
    first = token(alice).post(path)
    assert_replay(first, token(alice).post(path))
    assert first.content == json.dumps(api.Falsy.values[name]).encode() or name in ("text", "none")
    assert effects() == 1


@pytest.mark.parametrize("atomic_requests", [False, True])
def test_invalid_request_is_rolled_back_and_may_be_corrected(
    alice: User, atomic_requests: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", atomic_requests)
    for _ in range(2):
        refused = post(token(alice), "/api/pay/", {"label": "much too long"})
        assert refused.status_code == 400
        assert "label" in refused.json()
    assert effects() == 0
    assert post(token(alice), "/api/pay/", {"label": "fits"}).status_code == 201


@pytest.mark.parametrize("status", [400, 401, 403, 409, 429, 500])
def test_response_that_is_not_stored_is_rolled_back(alice: User, status: int) -> None:
    first, again = (token(alice).post(f"/api/refused/{status}/") for _ in range(2))
    assert first.status_code == again.status_code == status
    assert json.loads(first.content)["label"] == "refused"
    assert first.content != again.content
    assert effects() == 0


def test_final_client_errors(alice: User) -> None:
    path = "/api/refused/422/"
    assert_replay(token(alice).post(path), token(alice).post(path))
    path = "/api/refused/404/"
    assert_replay(token(alice).patch(path), token(alice).patch(path))
    assert effects() == 2


def test_json_by_value_and_mismatch(alice: User) -> None:
    first = post(token(alice), "/api/pay/", '{"label": "a", "n": 1}')
    assert_replay(first, post(token(alice), "/api/pay/", '{"n":1.0,"label":"a"}'))
    other = post(token(alice), "/api/pay/", '{"n": 2, "label": "a"}')
    assert_problem(other, 422, "idempotency-key-reused")


def test_permission_that_reads_the_data(alice: User) -> None:
    path = "/api/read-before/"
    assert_replay(post(token(alice), path), post(token(alice), path))
    assert_problem(post(token(alice), path, {"label": "b"}), 422, "idempotency-key-reused")
    form = {"label": "a"}
    other = token(alice, **{"Idempotency-Key": "form"})
    assert_replay(other.post(path, form), other.post(path, form))
    assert_problem(other.post(path, {"label": "b"}), 422, "idempotency-key-reused")
    assert effects() == 2


def test_permission_that_reads_the_file(alice: User) -> None:
    client = token(alice, Content_Disposition="attachment; filename=a.txt")

    def upload(content: str) -> Any:
        return client.post("/api/file-read-before/", content, content_type="text/plain")

    first = upload("a")
    assert first.json() == "a"
    assert_replay(first, upload("a"))
    assert_problem(upload("b"), 422, "idempotency-key-reused")


@pytest.mark.parametrize("method", ["post", "patch"])
def test_upload_is_recognised_whatever_its_boundary(alice: User, method: str) -> None:
    answers = [
        getattr(token(alice), method)(
            "/api/upload/", multipart(boundary), f"multipart/form-data; boundary={boundary}"
        )
        for boundary in ("aaaa", "bbbbbb")
    ]
    assert answers[0].json() == {"title": "Invoice", "file": "content"}
    assert_replay(*answers)


def test_response_that_the_view_finalizes_itself(alice: User) -> None:
    path = "/api/enveloped/"
    first, again = token(alice).post(path), token(alice).post(path)
    assert list(first.json()) == ["data"]
    assert list(first.json()["data"]) == ["effect", "label"]
    assert_replay(first, again)
    other = token(alice).post(f"{path}?other")
    assert_problem(other, 422, "idempotency-key-reused")


def test_guarded_twice_is_handled_once(alice: User) -> None:
    assert_replay(token(alice).post("/api/both/"), token(alice).post("/api/both/"))
    assert effects() == IdempotencyKey.objects.count() == 1


def test_safe_method_of_an_api_view(alice: User) -> None:
    for path in ("/api/above/", "/api/below/"):
        assert token(alice).get(path).status_code == 201
    assert effects() == 2
    assert not IdempotencyKey.objects.exists()


def test_action_is_an_operation_per_route(alice: User) -> None:
    post(token(alice), "/api/orders/1/ship/")
    assert_problem(post(token(alice), "/api/orders/2/ship/"), 422, "idempotency-key-reused")
    post(token(alice), "/api/orders/1/bill/")
    assert effects() == 2

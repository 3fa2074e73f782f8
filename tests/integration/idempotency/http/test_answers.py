"""The table of answers, and what is stored and replayed, over plain Django views."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth import get_user
from django.db import connection, connections
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.utils import timezone

from idempotency import idempotent_view, mark_final
from idempotency.models import IdempotencyKey
from tests.integration.idempotency.http import views
from tests.integration.idempotency.http.conftest import client_of, without_key
from tests.project.models import Effect

if TYPE_CHECKING:
    from django.contrib.auth.models import User

pytestmark = [pytest.mark.django_db, pytest.mark.database]


def effects() -> int:
    return Effect.objects.count()


def assert_problem(response: Any, status: int, code: str, **members: Any) -> None:
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    assert response["Cache-Control"] == "no-store"
    assert "Idempotent-Replayed" not in response
    problem = response.json()
    assert (problem.pop("status"), problem.pop("code")) == (status, code)
    assert problem.pop("title") == response.reason_phrase
    assert problem.pop("detail")
    assert problem == members


def assert_replay(first: Any, again: Any) -> None:
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again["Idempotent-Replayed"] == "true"
    assert again["Cache-Control"] == "no-store"
    assert "Idempotent-Replayed" not in first


class TestTableOfAnswers:
    def test_missing_and_required(self, alice: User, settings: Any) -> None:
        assert_problem(without_key(alice).post("/pay/"), 400, "idempotency-key-missing")
        assert effects() == 0
        settings.IDEMPOTENCY_DOCUMENTATION_URL = "https://example.com/keys"
        response = without_key(alice).post("/pay/")
        assert response["Link"] == '<https://example.com/keys>; rel="describedby"'

    @pytest.mark.parametrize("key", ["", "a,b", "é", "a" * 256, "x" * 1025, '"open'])
    def test_malformed(self, alice: User, settings: Any, key: str) -> None:
        settings.IDEMPOTENCY_DOCUMENTATION_URL = "https://example.com/keys"
        response = client_of(alice, **{"Idempotency-Key": key}).post("/pay/")
        assert_problem(response, 400, "idempotency-key-invalid")
        assert response["Link"] == '<https://example.com/keys>; rel="describedby"'
        assert effects() == 0

    def test_no_scope(self) -> None:
        assert_problem(client_of(None).post("/pay/"), 400, "idempotency-scope-missing")
        assert effects() == 0

    def test_body_too_large(self, client: Client, settings: Any) -> None:
        settings.IDEMPOTENCY_MAX_REQUEST_BYTES = 10
        response = client.post("/pay/", b"x" * 11, content_type="text/plain")
        assert_problem(response, 413, "idempotency-body-too-large")
        assert effects() == 0
        response = client.post("/pay/", b"x" * 10, content_type="text/plain")
        assert response.status_code == 201

    def test_other_payload_same_key(self, client: Client) -> None:
        first = client.post("/pay/", {"amount": 1}, content_type="application/json")
        other = client.post("/pay/", {"amount": 2}, content_type="application/json")
        assert first.status_code == 201
        assert_problem(other, 422, "idempotency-key-reused")
        assert effects() == 1

    @pytest.mark.django_db(transaction=True)
    def test_in_flight(self, client: Client) -> None:
        answers: list[Any] = []
        first = in_thread(lambda: answers.append(client.post("/slow/")))
        assert views.gate.entered.wait(30)
        twin = client.post("/slow/")
        assert_problem(twin, 409, "idempotency-in-progress")
        assert int(twin["Retry-After"]) >= 1
        views.gate.opened.set()
        first.join()
        assert_replay(answers[0], client.post("/slow/"))
        assert effects() == 1

    def test_indeterminate(self, client: Client) -> None:
        client.post("/pay/")
        IdempotencyKey.objects.update(state=IdempotencyKey.State.OUTCOME_UNKNOWN, expires_at=None)
        unknown = client.post("/pay/")
        assert_problem(unknown, 409, "idempotency-outcome-unknown")
        assert "Retry-After" not in unknown
        assert effects() == 1

    def test_done_but_body_not_replayable_streaming(self, client: Client) -> None:
        first: Any = client.post("/stream/")
        assert b"".join(first.streaming_content).startswith(b"effect ")
        again = client.post("/stream/")
        assert_problem(again, 409, "idempotency-response-unavailable", original_status=201)
        assert again["Location"] == "/streams/1/"
        assert "Retry-After" not in again
        assert effects() == 1

    @pytest.mark.parametrize("path", ["/oversize/", "/file/", "/secret/", "/encoded/"])
    def test_done_but_body_not_replayable(self, client: Client, path: str) -> None:
        first: Any = client.post(path)
        assert first.getvalue() if first.streaming else first.content
        again = client.post(path)
        assert_problem(
            again, 409, "idempotency-response-unavailable", original_status=first.status_code
        )
        assert effects() == 1
        assert b"the secret" not in bytes(IdempotencyKey.objects.get().result or b"")

    def test_done_but_written_by_another_version(self, client: Client) -> None:
        client.post("/pay/")
        IdempotencyKey.objects.update(result=b"http9:")
        assert_problem(client.post("/pay/"), 409, "idempotency-response-unavailable")
        assert effects() == 1

    @pytest.mark.django_db(transaction=True, databases=["default", "other"])
    def test_store_down_fails_closed(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            connections["other"].close()
            patched.setitem(connections["other"].settings_dict, "PORT", "1")
            down = client.post("/elsewhere/")
        assert_problem(down, 503, "idempotency-unavailable")
        assert int(down["Retry-After"]) >= 1
        assert effects() == 0
        assert client.post("/elsewhere/").status_code == 200

    @pytest.mark.django_db(transaction=True)
    def test_store_down_after_the_view(self, client: Client) -> None:
        assert_problem(client.post("/outage/"), 503, "idempotency-unavailable")
        assert effects() == 0


class TestKey:
    def test_quoted_and_bare_are_one_key(self, alice: User) -> None:
        first = client_of(alice, **{"Idempotency-Key": "abc"}).post("/pay/")
        again = client_of(alice, **{"Idempotency-Key": '"abc";v=1'}).post("/pay/")
        assert_replay(first, again)
        assert IdempotencyKey.objects.get().key == "abc"

    def test_case_is_another_key(self, alice: User) -> None:
        for key in ("abc", "Abc"):
            client_of(alice, **{"Idempotency-Key": key}).post("/pay/")
        assert effects() == 2

    def test_another_endpoint_is_another_operation(self, client: Client) -> None:
        client.post("/pay/a/")
        client.post("/pay-too/a/")
        client.patch("/pay/a/")
        assert effects() == 3
        assert set(IdempotencyKey.objects.values_list("namespace", flat=True)) == {
            "POST pay/<str:label>/",
            "POST pay-too/<str:label>/",
            "PATCH pay/<str:label>/",
        }

    def test_other_route_arguments_or_query_are_a_mismatch(self, client: Client) -> None:
        client.post("/pay/a/")
        assert_problem(client.post("/pay/b/"), 422, "idempotency-key-reused")
        assert_problem(client.post("/pay/a/?a=1"), 422, "idempotency-key-reused")
        assert effects() == 1

    def test_safe_and_other_methods_ignore_the_header(self, client: Client) -> None:
        assert client.get("/pay/").status_code == client.put("/pay/").status_code == 201
        assert client.get("/pay/").status_code == client.delete("/pay/").status_code == 201
        assert effects() == 4
        assert not IdempotencyKey.objects.exists()

    def test_optional_header(self, alice: User, client: Client) -> None:
        without_key(alice).post("/optional/")
        without_key(None).post("/optional/")
        assert effects() == 2
        assert_replay(client.post("/optional/"), client.post("/optional/"))
        assert effects() == 3
        refused = client_of(None).post("/optional/")
        assert_problem(refused, 400, "idempotency-scope-missing")

    def test_expired_key_runs_again(self, client: Client) -> None:
        client.post("/pay/")
        IdempotencyKey.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        assert "Idempotent-Replayed" not in client.post("/pay/")
        assert effects() == 2

    def test_view_without_a_urlconf(self, alice: User) -> None:
        for _ in range(2):
            request = RequestFactory().post("/", headers={"Idempotency-Key": "k"})
            request.user = alice
            response = views.pay(request)
        assert response["Idempotent-Replayed"] == "true"
        assert IdempotencyKey.objects.get().namespace == f"POST {views.__name__}.pay"


class TestScope:
    def test_user_b_with_user_a_s_key_never_sees_a_s_response(self, alice: User, bob: User) -> None:
        first = client_of(alice).post("/pay/")
        other = client_of(bob).post("/pay/")
        assert other.status_code == 201
        assert other.content != first.content
        assert effects() == 2
        assert_problem(client_of(None).post("/pay/"), 400, "idempotency-scope-missing")

    def test_other_payload_of_another_user_is_no_mismatch(self, alice: User, bob: User) -> None:
        assert client_of(alice).post("/pay/", {"a": 1}).status_code == 201
        assert client_of(bob).post("/pay/", {"a": 2}).status_code == 201

    def test_anonymous_ignored(self, alice: User) -> None:
        for caller in (client_of(None), client_of(None), without_key(None)):
            assert "Idempotent-Replayed" not in caller.post("/anonymous_ignored/")
        assert effects() == 3
        for _ in range(2):
            client_of(alice).post("/anonymous_ignored/")
        assert effects() == 4

    def test_anonymous_told_apart(self, alice: User) -> None:
        path = "/anonymous_known/"
        first = client_of(None, **{"X-Basket": "1"}).post(path)
        assert_replay(first, client_of(None, **{"X-Basket": "1"}).post(path))
        other = client_of(None, **{"X-Basket": "2"}).post(path)
        assert other.content != first.content
        # Not even by naming a user's scope.
        client_of(alice).post(path)
        guess = client_of(None, **{"X-Basket": f"auth.user:{alice.pk}"}).post(path)
        assert "Idempotent-Replayed" not in guess
        assert_problem(client_of(None).post(path), 400, "idempotency-scope-missing")

    def test_scope_of_one_s_own(self, alice: User) -> None:
        first = client_of(None, **{"X-Client": "c1"}).post("/by_client/")
        assert_replay(first, client_of(alice, **{"X-Client": "c1"}).post("/by_client/"))
        long = client_of(None, **{"X-Client": "c" * 300}).post("/by_client/")
        assert "Idempotent-Replayed" not in long
        assert_replay(long, client_of(None, **{"X-Client": "c" * 300}).post("/by_client/"))
        assert_problem(client_of(alice).post("/by_client/"), 400, "idempotency-scope-missing")

    def test_default_scope_names_the_model(self, alice: User, client: Client) -> None:
        client.post("/pay/")
        assert IdempotencyKey.objects.get().scope == f"auth.user:{alice.pk}"


class TestStored:
    @pytest.mark.parametrize("path", ["/pay/", "/redirect/", "/empty/", "/template/"])
    def test_replay_is_byte_identical(self, client: Client, path: str) -> None:
        first, again = client.post(path), client.post(path)
        assert_replay(first, again)
        for name in ("Content-Type", "Location", "Link"):
            assert again.get(name) == first.get(name)
        assert effects() == 1

    def test_cookies_and_request_ids_are_not_replayed(self, client: Client) -> None:
        first, again = client.post("/pay/"), client.post("/pay/")
        assert (first.cookies["basket"].value, first["X-Request-Id"]) == ("first", "1")
        assert not again.cookies
        assert "X-Request-Id" not in again

    def test_extra_headers_are_replayed_but_no_cookie(self, client: Client, settings: Any) -> None:
        settings.IDEMPOTENCY_REPLAY_HEADERS = ("X-Request-Id", "Set-Cookie")
        client.post("/pay/")
        again = client.post("/pay/")
        assert again["X-Request-Id"] == "1"
        assert not again.cookies
        assert "Set-Cookie" not in again.headers

    def test_template_is_rendered_once_and_callbacks_run(self, client: Client) -> None:
        first = client.post("/template/")
        assert first.content.startswith(b"<p>effect ")
        assert first["Link"] == client.post("/template/")["Link"] == "<rendered>"

    @pytest.mark.parametrize("status", [200, 201, 301, 303, 402, 422])
    def test_final_status(self, client: Client, status: int) -> None:
        first, again = client.post(f"/status/{status}/"), client.post(f"/status/{status}/")
        assert first.status_code == status
        assert_replay(first, again)
        assert effects() == 1

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 423, 425, 429, 500, 503])
    def test_status_that_is_not_stored_is_rolled_back(self, client: Client, status: int) -> None:
        first, again = client.post(f"/status/{status}/"), client.post(f"/status/{status}/")
        assert first.status_code == again.status_code == status
        assert first.content != again.content
        assert "Idempotent-Replayed" not in again
        assert effects() == 0
        assert not IdempotencyKey.objects.exists()

    def test_marked_final(self, client: Client) -> None:
        assert_replay(client.post("/final/404/"), client.post("/final/404/"))
        assert effects() == 1

    @pytest.mark.parametrize("status", [401, 403, 408, 409, 423, 425, 429, 500, 503])
    def test_never_marked_final(self, client: Client, status: int) -> None:
        with pytest.raises(ValueError, match=f"mark_final.*{status}"):
            client.post(f"/final/{status}/")
        assert effects() == 0

    def test_marked_final_and_then_another_status(self, client: Client) -> None:
        response = mark_final(HttpResponse(status=402))
        response.status_code = 503
        guard: Any = idempotent_view(lambda request: response)
        request = RequestFactory().post("/", headers={"Idempotency-Key": "k"})
        request.user = client_user(client)
        assert guard(request).status_code == 503
        assert not IdempotencyKey.objects.exists()

    def test_exception_is_never_stored(self, client: Client) -> None:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="The view fails"):
                client.post("/fail/")
        assert effects() == 0
        assert not IdempotencyKey.objects.exists()

    @pytest.mark.parametrize("name", views.ERRORS)
    def test_exception_of_the_view_is_not_taken_for_the_guard_s(
        self, client: Client, name: str
    ) -> None:
        with pytest.raises(type(views.ERRORS[name])):
            client.post(f"/fail-within/{name}/")
        assert effects() == 0

    def test_view_that_returns_no_response(self, client: Client) -> None:
        with pytest.raises(ValueError, match="didn't return an HttpResponse"):
            client.post("/nothing/")
        assert effects() == 0

    def test_request_body_is_not_stored(self, client: Client) -> None:
        client.post("/pay/", {"card": "4111111111111111"}, content_type="application/json")
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT idempotency_idempotencykey::text FROM idempotency_idempotencykey"
            )
            assert "4111111111111111" not in cursor.fetchone()[0]

    def test_upload_is_recognised_whatever_its_boundary(self, alice: User) -> None:
        answers = [
            client_of(alice).post(
                "/upload/", multipart(boundary), f"multipart/form-data; boundary={boundary}"
            )
            for boundary in ("aaaa", "bbbbbb")
        ]
        assert answers[0].content == b"Invoice content"
        assert_replay(*answers)

    def test_upload_under_csrf_protection(self, alice: User) -> None:
        """CSRF protection reads the form before the view can."""
        client = Client(enforce_csrf_checks=True, headers={"Idempotency-Key": "k"})
        client.force_login(alice)
        token = "a" * 32
        client.cookies["csrftoken"] = token
        answers = [
            client.post(
                "/upload/",
                multipart(boundary, csrf=token),
                f"multipart/form-data; boundary={boundary}",
            )
            for boundary in ("aaaa", "bbbbbb")
        ]
        assert answers[0].content == b"Invoice content"
        assert_replay(*answers)
        del client.cookies["csrftoken"]
        assert client.post("/upload/", {"title": "Invoice"}).status_code == 403


class TestClassBasedViews:
    def test_method_decorator(self, client: Client, alice: User) -> None:
        assert_replay(client.post("/decorated/"), client.post("/decorated/"))
        assert client.get("/decorated/").status_code == 200
        assert effects() == 2
        assert without_key(alice).post("/decorated/").status_code == 400

    def test_decorator_on_the_handler(self, client: Client) -> None:
        for send in (client.post, client.patch):
            assert_replay(send("/direct/"), send("/direct/"))
        assert effects() == 2

    def test_handler_that_calls_a_guarded_handler(self, client: Client) -> None:
        client.patch("/direct/")
        assert IdempotencyKey.objects.get().namespace == "PATCH direct/"

    def test_revoked_caller_gets_403(self, client: Client, alice: User) -> None:
        client.post("/direct/")
        alice.user_permissions.clear()
        again = client.post("/direct/")
        assert again.status_code == 403
        assert "Idempotent-Replayed" not in again

    def test_caller_who_has_logged_out_gets_403(self, client: Client) -> None:
        client.post("/decorated/")
        client.logout()
        assert client.post("/decorated/").status_code == 403


def client_user(client: Client) -> Any:
    request = RequestFactory().get("/")
    request.session = client.session
    return get_user(request)


def in_thread(target: Any) -> threading.Thread:
    def run() -> None:
        try:
            target()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def multipart(boundary: str, csrf: str = "") -> bytes:
    parts = [
        'name="title"\r\n\r\nInvoice',
        'name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\ncontent',
        f'name="csrfmiddlewaretoken"\r\n\r\n{csrf}',
    ]
    lines = "".join(f"--{boundary}\r\nContent-Disposition: form-data; {part}\r\n" for part in parts)
    return f"{lines}--{boundary}--\r\n".encode()

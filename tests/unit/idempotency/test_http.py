"""What cannot be guarded, or not that way, is refused when it is decorated."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest, HttpResponse
from django.test.utils import isolate_apps
from django.utils.decorators import method_decorator
from django.views import View

import idempotency
from idempotency import idempotent_view, mark_final
from idempotency.exceptions import ImproperlyUsed
from idempotency.http import NEVER_STORED, ViewGuard, caller


class Page(View):
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"methods": "POST"}, TypeError, "methods="),
        ({"methods": ()}, TypeError, "methods="),
        ({"methods": ("POST", "get")}, ValueError, "GET"),
        ({"scope": "user"}, TypeError, "scope="),
        ({"anonymous": "accept"}, TypeError, "anonymous="),
        ({"ttl": 0}, ValueError, "ttl="),
        ({"wait": -1}, ValueError, "wait="),
        ({"wait": "1"}, TypeError, "wait="),
        ({"store_statuses": (402, 503)}, ValueError, "503"),
        *(({"store_statuses": [status]}, ValueError, str(status)) for status in NEVER_STORED),
        ({"mode": "leased"}, TypeError, "mode"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        idempotent_view(**options)


def test_no_wait_is_none_or_nothing() -> None:
    for options in ({"wait": None}, {"wait": 0}, {}):
        assert ViewGuard(**options)._wait == timedelta(0)


def test_class_is_refused() -> None:
    with pytest.raises(TypeError, match="a handler of Page"):
        idempotent_view(Page)


def test_as_view_is_refused() -> None:
    """Its mixins may ask for permission, and would be asked after the replay."""
    with pytest.raises(TypeError, match="a handler of Page"):
        idempotent_view(Page.as_view())


def test_dispatch_is_refused(rf: Any) -> None:
    with pytest.raises(TypeError, match="at dispatch nobody has asked"):
        idempotent_view(View.dispatch)

    @method_decorator(idempotent_view, name="dispatch")
    class Own(Page):
        pass

    with pytest.raises(TypeError, match="at dispatch nobody has asked"):
        Own.as_view()(rf.post("/"))


def test_view_named_dispatch_is_a_view() -> None:
    def dispatch(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    assert idempotent_view(dispatch).__name__ == "dispatch"


def test_function_that_is_no_view() -> None:
    @idempotent_view
    def add(one: int, other: int) -> int:
        return one + other

    with pytest.raises(ImproperlyUsed, match=r"add was called without a request"):
        add(1, 2)


@pytest.mark.parametrize("status", [*NEVER_STORED, 500, 599])
def test_status_that_is_never_final(status: int) -> None:
    with pytest.raises(ValueError, match=rf"mark_final\(\): .* {status} "):
        mark_final(HttpResponse(status=status))


def test_mark_final_returns_the_response() -> None:
    response = HttpResponse(status=402)
    assert mark_final(response) is response


@isolate_apps("django.contrib.auth")
def test_caller_is_told_by_model_and_primary_key() -> None:
    class Client:
        pk = 5
        is_authenticated = True

    class Staff(User):
        class Meta:
            proxy = True
            app_label = "auth"

    def of(user: Any) -> str | None:
        return caller(SimpleNamespace(user=user))

    assert of(User(pk=5)) == of(Staff(pk=5)) == "auth.user:5"
    assert of(Client()) not in (None, of(User(pk=5)))
    assert of(AnonymousUser()) is None
    assert of(User()) is None
    assert of(None) is None
    assert caller(SimpleNamespace()) is None


def test_names_are_found_where_the_documentation_says() -> None:
    assert {"idempotent_view", "mark_final"} <= set(idempotency.__all__)

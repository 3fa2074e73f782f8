"""Guarded views of plain Django: each execution that commits leaves one ``Effect``."""

from __future__ import annotations

import contextlib
import gzip
import io
import threading
from typing import TYPE_CHECKING, Any

from django.contrib.auth.mixins import LoginRequiredMixin, UserPassesTestMixin
from django.db import OperationalError, transaction
from django.http import (
    FileResponse,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template import engines
from django.template.response import TemplateResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from idempotency import idempotent_view, mark_final
from idempotency.exceptions import KeyInProgress, KeyReused
from outbox.models import OutboxMessage
from tests.project.models import Effect
from tests.project.tasks import record

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponseBase


class Gate:
    """Holds ``held`` views until it is opened, and tells that one is there."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> None:
        self.entered.set()
        assert self.opened.wait(30), "The gate was never opened."

    def reset(self) -> None:
        self.entered.clear()
        self.opened.clear()


gate = Gate()

ERRORS: dict[str, Exception] = {
    "in-progress": KeyInProgress("The key of something else."),
    "reused": KeyReused("The key of something else."),
    "outage": OperationalError("Another database."),
}


def effect(label: str = "effect") -> int:
    return Effect.objects.create(label=label).pk


@idempotent_view
def pay(request: HttpRequest, label: str = "effect") -> HttpResponse:
    response = JsonResponse({"effect": effect(label)}, status=201)
    response["Location"] = f"/pay/{label}/"
    response["X-Request-Id"] = "1"
    response.set_cookie("basket", "first")
    return response


@idempotent_view(required=False)
def optional(request: HttpRequest) -> HttpResponse:
    return HttpResponse(effect())


@idempotent_view(anonymous="ignore")
def anonymous_ignored(request: HttpRequest) -> HttpResponse:
    return HttpResponse(effect())


@idempotent_view(anonymous=lambda request: request.headers.get("X-Basket"))
def anonymous_known(request: HttpRequest) -> HttpResponse:
    return HttpResponse(effect())


@idempotent_view(scope=lambda request: request.headers.get("X-Client"))
def by_client(request: HttpRequest) -> HttpResponse:
    return HttpResponse(effect())


@idempotent_view(store_statuses=(402, 422))
def status(request: HttpRequest, status: int) -> HttpResponse:
    return HttpResponse(effect(), status=status)


@idempotent_view
def final(request: HttpRequest, status: int) -> HttpResponse:
    return mark_final(HttpResponse(effect(), status=status))


@idempotent_view
def fail(request: HttpRequest) -> HttpResponse:
    effect()
    raise RuntimeError("The view fails.")


@idempotent_view
def fail_within(request: HttpRequest, name: str) -> HttpResponse:
    """Raises what a guard raises too, but it is the view's own affair."""
    effect()
    raise ERRORS[name]


@idempotent_view
def nothing(request: HttpRequest) -> Any:
    effect()


@idempotent_view
def redirect(request: HttpRequest) -> HttpResponse:
    effect()
    return HttpResponseRedirect("/elsewhere/")


@idempotent_view
def empty(request: HttpRequest) -> HttpResponse:
    effect()
    return HttpResponse(status=204)


@idempotent_view
def stream(request: HttpRequest) -> HttpResponseBase:
    response = StreamingHttpResponse([b"effect ", str(effect()).encode()], status=201)
    response["Location"] = "/streams/1/"
    return response


@idempotent_view
def file(request: HttpRequest) -> HttpResponseBase:
    return FileResponse(io.BytesIO(str(effect()).encode()), filename="effect.txt")


@idempotent_view
def oversize(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"x" * (2**18 + 1) + str(effect()).encode(), status=201)


@idempotent_view(store_body=False)
def secret(request: HttpRequest) -> HttpResponse:
    effect()
    return HttpResponse("the secret", status=201)


@idempotent_view
def encoded(request: HttpRequest) -> HttpResponse:
    body = gzip.compress(str(effect()).encode())
    return HttpResponse(body, headers={"Content-Encoding": "gzip"})


@idempotent_view
def template(request: HttpRequest) -> HttpResponseBase:
    pk = effect()
    text = engines["django"].from_string("<p>{{ effect.label }} {{ effect.pk }}</p>")
    response = TemplateResponse(request, text, {"effect": Effect.objects.get(pk=pk)})
    response.add_post_render_callback(lambda made: made.headers.setdefault("Link", "<rendered>"))
    return response


@idempotent_view
def upload(request: HttpRequest) -> HttpResponse:
    effect()
    files: Any = request.FILES
    return HttpResponse(f"{request.POST['title']} {files['file'].read().decode()}")


@idempotent_view
def enqueue(request: HttpRequest) -> HttpResponse:
    message = OutboxMessage.objects.enqueue(record.s("enqueued"))
    effect()
    return HttpResponse(message.pk, status=202)


@idempotent_view
def slow(request: HttpRequest) -> HttpResponse:
    pk = effect()
    gate.pass_through()
    return HttpResponse(pk, status=201)


@idempotent_view(wait=20)
def patient(request: HttpRequest) -> HttpResponse:
    pk = effect()
    gate.pass_through()
    return HttpResponse(pk, status=201)


@idempotent_view(using="other")
def elsewhere(request: HttpRequest) -> HttpResponse:
    return HttpResponse(effect())


@idempotent_view
def outage(request: HttpRequest) -> HttpResponse:
    """The server ends the session under the view."""
    effect()
    with contextlib.suppress(OperationalError):
        Effect.objects.raw("SELECT pg_terminate_backend(pg_backend_pid()), 1 AS id")[0]
    return HttpResponse("done")


@idempotent_view
def own_transaction_spoiled(request: HttpRequest) -> HttpResponse:
    effect()
    transaction.set_rollback(True)
    return HttpResponse("done")


def then_fails(request: HttpRequest) -> HttpResponse:
    response = pay(request)
    assert response.status_code == 201
    raise RuntimeError("Something fails after the guard.")


@idempotent_view
async def pay_async(request: HttpRequest) -> HttpResponse:
    made = await Effect.objects.acreate(label="async")
    return HttpResponse(made.pk, status=201)


@idempotent_view
async def refuse_async(request: HttpRequest) -> HttpResponse:
    await Effect.objects.acreate(label="async")
    return HttpResponse("no", status=400)


@csrf_exempt
@transaction.non_atomic_requests
@idempotent_view
def exempt(request: HttpRequest) -> HttpResponse:
    return HttpResponse(effect())


exempt_below: Callable[..., HttpResponseBase] = idempotent_view(
    csrf_exempt(transaction.non_atomic_requests(lambda request: HttpResponse(effect())))
)


@method_decorator(idempotent_view(store_statuses=(422,)), name="post")
class Decorated(LoginRequiredMixin, View):
    raise_exception = True

    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(effect())

    def post(self, request: HttpRequest, label: str = "class") -> HttpResponse:
        return HttpResponse(effect(label), status=201)


class Direct(UserPassesTestMixin, View):
    raise_exception = True

    def test_func(self) -> bool:
        return self.request.user.has_perm("project.add_effect")

    @idempotent_view
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(effect("class"), status=201)

    @idempotent_view
    def patch(self, request: HttpRequest) -> HttpResponse:
        return self.post(request)

    @idempotent_view
    def put(self, request: HttpRequest) -> HttpResponse:
        return self.post(request)


class Async(View):
    @idempotent_view
    async def post(self, request: HttpRequest) -> HttpResponse:
        made = await Effect.objects.acreate(label="async class")
        return HttpResponse(made.pk, status=201)


class AsyncDecorated(View):
    @method_decorator(idempotent_view)
    async def post(self, request: HttpRequest) -> HttpResponse:
        made = await Effect.objects.acreate(label="async class")
        return HttpResponse(made.pk, status=201)

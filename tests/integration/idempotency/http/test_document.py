"""docs/http.md: each of its examples is here word for word, and runs."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.decorators import login_required
from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.http import require_POST
from rest_framework.decorators import action
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from idempotency import idempotent_view, mark_final
from outbox.models import OutboxMessage
from sample_project.shop.models import Order, Payment
from sample_project.shop.tasks import write_receipt
from tests.acceptance.documents import ROOT, blocks, occurs
from tests.integration.idempotency.http.conftest import client_of
from tests.integration.idempotency.http.test_answers import assert_replay

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.django_db

DOCUMENT: Path = ROOT / "docs" / "http.md"
HERE: Path = ROOT / "tests/integration/idempotency/http/test_document.py"


@require_POST
@login_required
@idempotent_view
def create_order(request: HttpRequest) -> HttpResponse:
    order = Order.objects.create(customer=request.user.get_username(), product="tea")
    OutboxMessage.objects.enqueue(write_receipt.s(order.pk, order.customer))
    return JsonResponse({"order": order.pk}, status=201)


class Orders(LoginRequiredMixin, View):
    @idempotent_view
    def post(self, request: HttpRequest) -> HttpResponse:
        return create_order(request)


@method_decorator(idempotent_view(ttl=timedelta(days=1)), name="post")
class OldOrders(Orders):
    pass


class OrderViewSet(ViewSet):
    permission_classes = [IsAuthenticated]

    @idempotent_view
    def create(self, request: Request) -> Response:
        order = Order.objects.create(customer=request.user.get_username(), product="tea")
        return Response({"order": order.pk}, status=201)

    @action(detail=True, methods=["post"])
    @idempotent_view(store_statuses=(402,))
    def pay(self, request: Request, pk: str) -> Response:
        order = Order.objects.get(pk=pk)
        if order.amount > 100:
            return Response({"refused": "too much"}, status=402)
        Payment.objects.create(order=order, amount=order.amount)
        return Response({"paid": str(order.amount)})


@idempotent_view(anonymous=lambda request: request.session.get("basket_id"))
def put_in_basket(request: HttpRequest) -> HttpResponse:
    return HttpResponse(secrets.token_hex())


class Machine(View):
    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        request.auth = type("Token", (), {"client_id": request.headers["X-Client"]})
        return super().dispatch(request, *args, **kwargs)

    @idempotent_view(scope=lambda request: request.auth.client_id)
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(secrets.token_hex())


def refuse(reason: str) -> HttpResponse:
    return mark_final(JsonResponse({"refused": reason}, status=402))


@idempotent_view
def refuse_all(request: HttpRequest) -> HttpResponse:
    return refuse(secrets.token_hex())


@idempotent_view(store_body=False)
def create_token(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"token": secrets.token_urlsafe()}, status=201)


urlpatterns = [
    path("function/", create_order),
    path("class/", Orders.as_view()),
    path("decorated/", OldOrders.as_view()),
    path("viewset/", OrderViewSet.as_view({"post": "create"})),
    path("viewset/<int:pk>/pay/", OrderViewSet.as_view({"post": "pay"})),
    path("basket/", put_in_basket),
    path("machine/", Machine.as_view()),
    path("refuse/", refuse_all),
    path("token/", create_token),
]


@pytest.fixture(autouse=True)
def _own_urls(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__


@pytest.mark.parametrize("block", blocks(DOCUMENT, "python"))
def test_each_example_is_here(block: str) -> None:
    assert occurs(block, HERE), f"not in the test:\n{block}"


@pytest.mark.parametrize("path", ["/function/", "/class/", "/decorated/", "/viewset/"])
def test_an_order_is_created_once(client: Client, path: str) -> None:
    first = client.post(path)
    assert first.json() == {"order": Order.objects.get().pk}
    assert_replay(first, client.post(path))
    assert Order.objects.count() == 1
    assert OutboxMessage.objects.count() == (path != "/viewset/")
    assert client_of(None).post(path).status_code in (302, 403)


@pytest.mark.parametrize(("quantity", "status"), [(1, 200), (100, 402)])
def test_an_order_is_paid_once(client: Client, quantity: int, status: int) -> None:
    order = Order.objects.create(customer="Ada", product="tea", quantity=quantity)
    first = client.post(f"/viewset/{order.pk}/pay/")
    assert first.status_code == status
    assert_replay(first, client.post(f"/viewset/{order.pk}/pay/"))
    assert order.payments.count() == (status == 200)


def test_a_basket() -> None:
    one, other = client_of(None), client_of(None)
    for client, basket in ((one, "1"), (other, "2")):
        session = client.session
        session["basket_id"] = basket
        session.save()
    first = one.post("/basket/")
    assert_replay(first, one.post("/basket/"))
    assert other.post("/basket/").content != first.content
    assert client_of(None).post("/basket/").status_code == 400


def test_a_machine() -> None:
    one, other = (client_of(None, **{"X-Client": name}) for name in ("one", "other"))
    first = one.post("/machine/")
    assert_replay(first, one.post("/machine/"))
    assert other.post("/machine/").content != first.content


def test_a_refusal_and_a_secret(client: Client) -> None:
    assert_replay(client.post("/refuse/"), client.post("/refuse/"))
    assert client.post("/token/").status_code == 201
    again = client.post("/token/").json()
    assert (again["code"], again["original_status"]) == ("idempotency-response-unavailable", 201)

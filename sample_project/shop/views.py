from __future__ import annotations

import json
from typing import Any

from django.core.exceptions import BadRequest
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from outbox.models import OutboxMessage
from sample_project.shop.forms import OrderForm
from sample_project.shop.models import Order
from sample_project.shop.tasks import book_payment, write_receipt


def place_order(form: OrderForm) -> Order:
    with transaction.atomic():
        order: Order = form.save()
        OutboxMessage.objects.enqueue(write_receipt.s(order.pk, order.customer))
        OutboxMessage.objects.enqueue(book_payment.s(order.pk, order.amount))
    return order


@csrf_exempt
@require_POST
def create_order(request: HttpRequest) -> JsonResponse:
    form = OrderForm(json_object(request))
    if not form.is_valid():
        return JsonResponse({"errors": form.errors}, status=400)
    return JsonResponse({"order": place_order(form).pk}, status=201)


def json_object(request: HttpRequest) -> dict[str, Any]:
    """Return the JSON object in the request's body; anything else there is a ``BadRequest``."""
    try:
        data = json.loads(request.body)
    except ValueError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise BadRequest("The body is not a JSON object.")
    return data


def new_order(request: HttpRequest) -> HttpResponse:
    """The page where a person places an order."""
    form = OrderForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        return redirect(place_order(form))
    latest = Order.objects.prefetch_related("receipts", "payments").order_by("-pk")[:8]
    return render(request, "shop/new_order.html", {"form": form, "latest": latest})


def show_order(request: HttpRequest, pk: int) -> HttpResponse:
    """One order, its receipt and its payment; reloads itself until both are there."""
    orders = Order.objects.prefetch_related("receipts", "payments")
    return render(request, "shop/order.html", {"order": get_object_or_404(orders, pk=pk)})

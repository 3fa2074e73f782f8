"""Where a payment begins: one click, one payment, however often the client asks."""

from __future__ import annotations

from decimal import Decimal
from uuid import uuid4

from django import forms
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

from idempotency import idempotent_view
from outbox.models import OutboxMessage
from sample_project.guide.models import Payment
from sample_project.guide.tasks import pay


class PaymentForm(forms.Form):
    amount = forms.DecimalField(min_value=Decimal("0.01"), max_digits=10, decimal_places=2)


@require_POST
@idempotent_view
def create_payment(request: HttpRequest) -> JsonResponse:
    """Payment, message, key and response are one transaction."""
    form = PaymentForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"errors": form.errors}, status=400)
    payment = Payment.objects.create(id=uuid4(), amount=form.cleaned_data["amount"], currency="EUR")
    OutboxMessage.objects.enqueue(pay.s(payment.pk, payment.amount, payment.currency))
    return JsonResponse({"payment": payment.pk}, status=201)

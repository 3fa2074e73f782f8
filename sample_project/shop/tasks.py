from decimal import Decimal

from celery import shared_task

from idempotency import idempotent
from sample_project.shop.models import Payment, Receipt


@shared_task
@idempotent
def write_receipt(order_id: int, recipient: str) -> None:
    Receipt.objects.create(order_id=order_id, recipient=recipient)


@shared_task
@idempotent
def book_payment(order_id: int, amount: Decimal) -> None:
    Payment.objects.create(order_id=order_id, amount=amount)

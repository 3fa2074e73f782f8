"""Message deduplication: the message's id is the key, and each consumer has its own."""

from celery import shared_task
from django.db.models import F

from idempotency import idempotent
from sample_project.guide.models import Stock


@shared_task
@idempotent
def take_from_stock(product: str, quantity: int) -> None:
    Stock.objects.filter(product=product).update(quantity=F("quantity") - quantity)


@shared_task
@idempotent
def count_sale(product: str, quantity: int) -> int:
    Stock.objects.filter(product=product).update(sold=F("sold") + quantity)
    return Stock.objects.get(product=product).sold

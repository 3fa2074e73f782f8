"""Idempotency keys: the identity of an intent, given to it where it is made."""

from datetime import date
from decimal import Decimal
from uuid import UUID

from celery import shared_task

from idempotency import idempotent, make_key
from sample_project.guide.models import Credit


@shared_task
@idempotent(namespace="guide.credit", key="{credit_id}")
def give_credit(credit_id: UUID, customer: str, amount: Decimal) -> Decimal:
    """Give a customer credit; ``credit_id`` is made where somebody decides to give it."""
    return Credit.objects.create(customer=customer, amount=amount, reason="goodwill").amount


def bonus_key(customer: str, month: date) -> str:
    """One bonus for each customer and month, of whatever amount. A digest hides the address."""
    return make_key("guide.bonus", customer=customer, month=month.replace(day=1))


@shared_task
@idempotent(namespace="guide.bonus", key=bonus_key)
def pay_bonus(customer: str, month: date, amount: Decimal) -> Decimal:
    return Credit.objects.create(customer=customer, amount=amount, reason="bonus").amount

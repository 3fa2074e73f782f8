"""The complete example: money that is taken once, though nobody may ever answer."""

from decimal import Decimal
from uuid import UUID

from celery import shared_task

from idempotency import derived_key, fenced, idempotent, step
from sample_project.gateway import client
from sample_project.guide.models import Booking, Payment


@shared_task(
    autoretry_for=(client.GatewayError,),
    retry_backoff=True,  # 1, 2, 4 … seconds, each a random share of it
    retry_backoff_max=300,
    max_retries=12,
)
@idempotent(
    namespace="guide.payment",
    key="{payment_id}",
    mode="leased",
    # The gateway knows our key, so asking again is safe, whatever became of the last time:
    on_failed="execute",  # after an error, a timeout included,
    on_stale="reclaim",  # and after a worker died.
)
def pay(payment_id: UUID, amount: Decimal, currency: str) -> str | None:
    """Charge and book a payment; return the gateway's receipt, None for a declined one."""
    receipt = step("charge", charge, payment_id, amount, currency, derived_key("charge"))
    with fenced():
        step("book", book, payment_id, amount, receipt)
    return receipt


def charge(payment_id: UUID, amount: Decimal, currency: str, key: str) -> str | None:
    try:
        return client.charge(str(payment_id), amount, currency, idempotency_key=key)
    except client.Declined:
        # An answer, not a failure: it is recorded, and a later delivery does not ask again.
        return None


def book(payment_id: UUID, amount: Decimal, receipt: str | None) -> None:
    if receipt is None:
        Payment.objects.filter(pk=payment_id).update(declined=True)
    else:
        Booking.objects.create(payment_id=payment_id, amount=amount, receipt=receipt)

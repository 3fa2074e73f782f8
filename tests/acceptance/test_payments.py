"""The guide's payment example in a bad week: the gateway's ledger and the shop's agree."""

from __future__ import annotations

import os
import random
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from django.db import transaction

from outbox.models import OutboxMessage
from sample_project.gateway.faults import Fault, Faults
from sample_project.gateway.server import Gateway
from sample_project.guide.models import Booking, Payment
from sample_project.guide.tasks import pay
from tests.helpers import wait_for

if TYPE_CHECKING:
    from sample_project.processes import Process
    from tests.servers.children import Children

PAYMENTS = int(os.environ.get("PAYMENTS", "500"))
BATCH = 50
# A worker is killed each time that so many more are booked: every few seconds.
BOOKED_PER_KILL = 50
WORKERS = 2


def enqueue_payments() -> None:
    """A payment and its message in one transaction, in batches."""
    for first in range(0, PAYMENTS, BATCH):
        with transaction.atomic():
            payments = Payment.objects.bulk_create(
                Payment(
                    id=uuid4(), amount=Decimal(random.randint(1, 100_000)) / 100, currency="EUR"
                )
                for _ in range(first, min(first + BATCH, PAYMENTS))
            )
            OutboxMessage.objects.enqueue_many(
                pay.s(payment.pk, payment.amount, payment.currency) for payment in payments
            )


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["valkey"], indirect=True)
def test_five_hundred_payments_agree_to_the_cent(children: Children) -> None:
    with Gateway() as gateway:
        gateway.faults = Faults(fail=0.10, hang=0.05, hang_seconds=3)
        # The sample project's own processes, with times so short that nobody has to wait.
        env = {
            "DJANGO_SETTINGS_MODULE": "sample_project.settings",
            "GUIDE_GATEWAY_URL": gateway.url,
            "IDEMPOTENCY_LEASE": "3",
            "OUTBOX_REDELIVER_AFTER": "5",
            "BROKER_VISIBILITY_TIMEOUT": "10",
        }

        def start_worker() -> Process:
            options = "--concurrency=4", "--without-gossip", "--without-mingle", "--loglevel=INFO"
            app = "--app=sample_project"
            name = f"--hostname={uuid4()}@localhost"
            return children.start("payments", "celery", app, "worker", name, *options, env=env)

        def ready(worker: Process) -> bool:
            return " ready." in worker.output()

        enqueue_payments()
        children.start("relay", "django", "outbox_relay", env=env)
        workers = [start_worker() for _ in range(WORKERS)]
        kills = 0
        for aim in range(BOOKED_PER_KILL, PAYMENTS, BOOKED_PER_KILL):
            wait_for(
                lambda aim=aim: Booking.objects.count() >= aim and ready(workers[0]),  # type: ignore[misc]
                timeout=120,
                interval=0.1,
                message=lambda: workers[-1].output()[-3000:],
            )
            victim = workers.pop(0)
            victim.kill()
            kills += 1
            workers.append(start_worker())
        wait_for(
            lambda: OutboxMessage.objects.executed().count() == PAYMENTS,
            timeout=180,
            interval=0.2,
            message=lambda: workers[-1].output()[-3000:],
        )

    charged = {charge.reference: charge.amount for charge in gateway.ledger.charges}
    booked = {
        str(payment): int(amount * 100)
        for payment, amount in Booking.objects.values_list("payment_id", "amount")
    }
    owed = {str(p.pk): int(p.amount * 100) for p in Payment.objects.all()}
    assert len(gateway.ledger.charges) == PAYMENTS, "a payment was charged twice, or not at all"
    assert charged == booked == owed
    # A week without bad days would prove nothing.
    assert kills >= (PAYMENTS - 1) // BOOKED_PER_KILL
    assert gateway.faults.seen[Fault.FAIL] > PAYMENTS * 0.03
    assert gateway.faults.seen[Fault.HANG] > PAYMENTS * 0.01
    assert gateway.ledger.recognised > 0, "no charge was asked for again under its key"

"""The task of a run, and the intents that it and the producers commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import shared_task
from django.db import transaction

from idempotency import idempotent
from outbox.models import OutboxMessage
from tests.project.models import Intent
from tests.project.tasks import take_effect

if TYPE_CHECKING:
    from collections.abc import Sequence


@shared_task
@idempotent
def fulfil(label: str, successors: int = 0) -> None:
    """Guarded: take effect, and intend something further in the same transaction."""
    take_effect(label)
    if successors:
        intend([f"{label}+"], successors=successors - 1)


def intend(
    labels: Sequence[str],
    *,
    successors: int = 0,
    ordering_key: str = "",
    using: str = "default",
    **options: Any,
) -> None:
    """Commit intents, and a message for each, with this transaction or in one of their own."""
    with transaction.atomic(using=using):
        OutboxMessage.objects.enqueue_many(
            [fulfil.s(label, successors).set(**options) for label in labels],
            keys=labels,
            ordering_keys=[ordering_key] * len(labels),
            using=using,
        )
        # Once their key is taken: so their ids are in the order of commits.
        Intent.objects.using(using).bulk_create(
            Intent(label=label, ordering_key=ordering_key) for label in labels
        )

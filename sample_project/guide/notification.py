"""Check before execute: claim before execute, and know what was not seen to happen."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task

from idempotency import idempotent
from sample_project.gateway import client


@shared_task(bind=True, max_retries=10)
@idempotent(
    namespace="guide.notification",
    key="{notification_id}",
    scope="{recipient}",
    mode="leased",
    # The provider knows no keys. What may have been sent is not sent again without a person:
    on_failed="raise",  # not after an error that does not say that nothing was done,
    on_stale="block",  # and not when a worker died on the way.
)
def send_notification(self: Task[..., Any], recipient: str, notification_id: str, text: str) -> str:
    try:
        client.notify(recipient, text)
    except client.NothingDone as error:
        # A retry lets go of the claim: the next delivery is the first one again.
        raise self.retry(exc=error, countdown=2**self.request.retries) from error
    return "sent"

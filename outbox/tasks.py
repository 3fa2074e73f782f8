"""The Celery task for beat, for projects that do not run ``manage.py outbox_relay``."""

from __future__ import annotations

from celery import shared_task

from outbox.relay import Relay


@shared_task(name="outbox.relay", ignore_result=True)
def relay(using: str = "default") -> int:
    """Publish what is due on one database alias; return how many messages were published.

    Raises ``outbox.exceptions.BrokerUnavailable`` in an outage; the next run goes on.
    """
    drain = Relay(using)
    try:
        return drain.drain().published
    finally:
        drain.close()

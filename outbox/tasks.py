"""The Celery tasks for beat, for projects that do not run the commands of these names."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import islice

from celery import shared_task

from outbox.conf import conf
from outbox.models import OutboxMessage
from outbox.ordering_querysets import purge_keys
from outbox.querysets import FINISHED
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


@shared_task(name="outbox.purge", ignore_result=True)
def purge(
    using: str = "default",
    states: Sequence[str] = FINISHED,
    older_than: float | None = None,
    batch_size: int = 1000,
    max_batches: int = 100,
) -> int:
    """Delete messages of one database alias that have been over for long enough; return how many.

    ``older_than``: seconds, ``OUTBOX_RETENTION`` unless given. Dead, failed and expired messages
    go only where ``states`` names them. At most ``max_batches`` transactions of ``batch_size``
    rows: the next run goes on. Ordering keys without a message go as well. Raises ``ValueError``
    for a state that is not purged.
    """
    age = conf.RETENTION if older_than is None else timedelta(seconds=older_than)
    batches = OutboxMessage.objects.using(using).purge_in_batches(age, batch_size, states)
    deleted: int = sum(islice(batches, max_batches))
    purge_keys(using, batch_size)
    return deleted

"""Settings of the outbox; each is overridden by ``OUTBOX_<NAME>`` in Django's settings."""

from __future__ import annotations

from datetime import timedelta

from idempotency.conf import AppSettings


class OutboxSettings(AppSettings):
    """Typed defaults. Durations are seconds or ``timedelta`` in the settings file."""

    PREFIX = "OUTBOX_"

    BATCH_SIZE: int = 500
    """Most messages that a relay claims, publishes and settles in one transaction.

    Throughput rises up to 500 or 1,000 and hardly beyond; a larger batch holds its rows longer.
    """

    BATCH_BYTES: int = 16 * 1024 * 1024
    """Most bytes of message bodies in one batch; a batch has at least one message all the same."""

    POLL_INTERVAL: timedelta = timedelta(milliseconds=36)
    """How long an idle relay waits before it looks again. It adds to the delivery latency.

    Just after a message it waits for a quarter, then for half of it.
    """

    CLAIM_TIMEOUT: timedelta = timedelta(seconds=30)
    """How long a relay may hold a batch. PostgreSQL ends the session of one that holds it longer
    (a relay that hangs or is paused), and another relay takes over its messages.

    Publishing must be done within two thirds of it.
    """

    MAX_ATTEMPTS: int = 10
    """How many times a message may be refused by the broker before it is dead."""

    REDELIVER_AFTER: timedelta = timedelta(minutes=5)
    """How long a relay waits for a published message's receipt before it publishes it again.

    Longer than a task usually takes. It doubles with each redelivery, and nothing is redelivered
    that may still be waiting in its queue.
    """

    MAX_REDELIVERIES: int = 8
    """How many times a message is published again for want of a receipt before it is stuck."""

    BACKOFF_BASE: timedelta = timedelta(seconds=1)
    """Upper bound of the wait after the first refusal; it doubles with each further one.

    The wait is drawn evenly from zero to the bound ("full jitter").
    """

    BACKOFF_MAX: timedelta = timedelta(minutes=10)
    """The largest upper bound of the wait between two attempts, and between two connections."""

    RETENTION: timedelta = timedelta(days=30)
    """How long a message is kept that is over: ``outbox_purge`` and the task ``outbox.purge``
    delete it then. Messages that wait for something or somebody are kept.

    Longer than ``IDEMPOTENCY_TTL``: for so long duplicates come, and somebody may ask what became
    of their message.
    """


conf = OutboxSettings()

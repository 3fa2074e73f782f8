"""The audit: what became of every committed message, read from the database by SQL alone.

A message's ``key`` is the label of the one effect that it shall have.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from django.db import connections

AUDIT = """
WITH effect AS (
    SELECT label, count(*) AS times FROM project_effect GROUP BY label
), delivery AS (
    SELECT message_id, count(*) AS times, count(DISTINCT published_at) AS publishes
    FROM project_delivery GROUP BY message_id
), entry AS (
    SELECT message.key, message.status, message.attempts, message.redeliveries,
        coalesce(effect.times, 0) AS effects,
        coalesce(delivery.times, 0) AS deliveries,
        coalesce(delivery.publishes, 0) AS publishes
    FROM outbox_outboxmessage AS message
    LEFT JOIN effect ON effect.label = message.key
    LEFT JOIN delivery ON delivery.message_id = message.id
)
SELECT
    count(*),
    count(*) FILTER (WHERE effects = 0),
    count(*) FILTER (WHERE effects > 1),
    (SELECT count(*) FROM effect WHERE label NOT IN (SELECT key FROM entry)),
    count(*) FILTER (WHERE status <> 'executed'),
    count(*) FILTER (WHERE attempts > 0 OR status = 'dead'),
    count(*) FILTER (WHERE deliveries > 1),
    count(*) FILTER (WHERE publishes > 1),
    count(*) FILTER (WHERE redeliveries > 0)
FROM entry
"""

BACKLOG = """
SELECT count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'published'),
    count(*) FILTER (WHERE status = 'executed')
FROM outbox_outboxmessage
"""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Numbers of messages; ``phantom`` are effects of what never committed."""

    committed: int
    lost: int
    doubled: int
    phantom: int
    unfinished: int
    blamed: int
    delivered_again: int
    published_again: int
    redelivered: int

    def violations(self) -> list[str]:
        """What must not be, in words: empty when every message took effect exactly once."""
        wrong = ("lost", "doubled", "phantom", "unfinished", "blamed")
        return [name for name in wrong if getattr(self, name)]

    def __str__(self) -> str:
        return ", ".join(
            f"{field.name.replace('_', ' ')} {getattr(self, field.name)}" for field in fields(self)
        )


@dataclass(frozen=True, slots=True)
class Backlog:
    """Numbers of messages that wait for a relay, for a worker, and for nothing."""

    pending: int
    published: int
    executed: int

    @property
    def in_flight(self) -> int:
        return self.pending + self.published


def audit(using: str = "default") -> Ledger:
    """Read the ledger of one database alias."""
    with connections[using].cursor() as cursor:
        cursor.execute(AUDIT)
        return Ledger(*cursor.fetchone())


def backlog(using: str = "default") -> Backlog:
    """Read how far things are."""
    with connections[using].cursor() as cursor:
        cursor.execute(BACKLOG)
        return Backlog(*cursor.fetchone())

"""The audit: what became of every committed intent, read from the database by SQL alone.

An intent's message has its label as the key, and its effect has the label too.
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
    SELECT message.status, message.attempts, message.redeliveries,
        coalesce(effect.times, 0) AS effects,
        coalesce(delivery.times, 0) AS deliveries,
        coalesce(delivery.publishes, 0) AS publishes
    FROM project_intent AS intent
    LEFT JOIN outbox_outboxmessage AS message ON message.key = intent.label
    LEFT JOIN effect ON effect.label = intent.label
    LEFT JOIN delivery ON delivery.message_id = message.id
), out_of_order AS (
    SELECT intent.id < lag(intent.id) OVER (
        PARTITION BY intent.ordering_key ORDER BY effect.id
    ) AS early
    FROM project_effect AS effect
    JOIN project_intent AS intent USING (label)
    WHERE intent.ordering_key <> ''
)
SELECT
    count(*),
    count(*) FILTER (WHERE effects = 0),
    count(*) FILTER (WHERE effects > 1),
    count(*) FILTER (WHERE status IS DISTINCT FROM 'executed'),
    (
        SELECT count(*) FROM effect
        WHERE NOT EXISTS (SELECT FROM project_intent AS intent WHERE intent.label = effect.label)
    ) + (
        SELECT count(*) FROM outbox_outboxmessage AS message
        WHERE NOT EXISTS (SELECT FROM project_intent AS intent WHERE intent.label = message.key)
    ),
    (SELECT count(*) FROM out_of_order WHERE early),
    count(*) FILTER (WHERE attempts > 0 OR status = 'dead'),
    count(*) FILTER (WHERE deliveries > 1),
    count(*) FILTER (WHERE publishes > 1),
    count(*) FILTER (WHERE redeliveries > 0),
    (
        SELECT count(*) FROM project_held AS held
        JOIN LATERAL (
            SELECT relay FROM project_settled AS settled
            WHERE settled.message_id = held.message_id AND settled.at > held.at
            ORDER BY settled.at LIMIT 1
        ) AS next ON next.relay <> held.relay
    )
FROM entry
"""

BACKLOG = """
SELECT count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'published'),
    count(*) FILTER (WHERE status = 'executed')
FROM outbox_outboxmessage
"""

SUSPECTS = """
SELECT intent.label, message.id, message.status, message.redeliveries, message.errors::text,
    (SELECT count(*) FROM project_effect AS effect WHERE effect.label = intent.label),
    (SELECT count(*) FROM project_delivery AS delivery WHERE delivery.message_id = message.id)
FROM project_intent AS intent
LEFT JOIN outbox_outboxmessage AS message ON message.key = intent.label
WHERE message.status IS DISTINCT FROM 'executed'
    OR 1 <> (SELECT count(*) FROM project_effect AS effect WHERE effect.label = intent.label)
ORDER BY intent.id
LIMIT %s
"""

# From the indexes of what is due and of what waits, however many messages are finished.
IN_FLIGHT = """
SELECT (SELECT count(*) FROM outbox_outboxmessage WHERE available_at IS NOT NULL AND NOT blocked)
    + (SELECT count(*) FROM outbox_outboxmessage WHERE blocked)
"""

WRONG = ("lost", "doubled", "stuck", "phantom", "out_of_order", "blamed")


@dataclass(frozen=True, slots=True)
class Ledger:
    """Numbers of committed intents, and of what must not be.

    ``lost``, ``doubled``: without an effect, with more than one. ``stuck``: not executed in the
    end, whatever the message's state. ``phantom``: effects and messages of what never committed.
    ``out_of_order``: effects that came before an earlier one of their ordering key. ``blamed``:
    refused by the broker. ``taken_over``: settled by another relay than the one that a fault met
    with the message in its claim.
    """

    committed: int
    lost: int
    doubled: int
    stuck: int
    phantom: int
    out_of_order: int
    blamed: int
    delivered_again: int
    published_again: int
    redelivered: int
    taken_over: int

    @property
    def executed(self) -> int:
        return self.committed - self.lost

    def violations(self) -> list[str]:
        """What must not be, in words: empty when every intent took effect exactly once."""
        return [name for name in WRONG if getattr(self, name)]

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


def suspects(using: str = "default", limit: int = 20) -> list[str]:
    """Read what is known of intents that are lost, doubled or stuck."""
    with connections[using].cursor() as cursor:
        cursor.execute(SUSPECTS, [limit])
        return [
            f"{label}: message {id}, {status}, redelivered {redeliveries} times, errors {errors}, "
            f"effects {effects}, deliveries {deliveries}"
            for label, id, status, redeliveries, errors, effects, deliveries in cursor
        ]


def in_flight(using: str = "default") -> int:
    """Read how many messages a relay will look at again: cheaply, however many are finished."""
    with connections[using].cursor() as cursor:
        cursor.execute(IN_FLIGHT)
        return int(cursor.fetchone()[0])

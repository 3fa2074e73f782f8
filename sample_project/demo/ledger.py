"""The ledger: read from the database by SQL, and what must hold for it to balance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from django.db import connection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

SQL = Path(__file__).with_name("ledger.sql").read_text()
MESSAGES_PER_ORDER = 2
FEWEST_DELIVERIES = 2


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counts of what was placed since a moment. ``lost`` and ``doubled`` count effects."""

    orders: int
    receipts: int
    payments: int
    lost: int
    doubled: int
    messages: int
    published: int
    executed: int
    redelivered: int
    deliveries: int
    fewest_deliveries: int
    suppressed: int

    def problems(self, accepted: int) -> Iterator[str]:
        """Say what does not balance, given how many orders the web server ``accepted``."""
        if self.orders != accepted:
            yield f"{accepted} orders were accepted, but {self.orders} are committed"
        if self.messages != MESSAGES_PER_ORDER * self.orders:
            yield f"{self.orders} orders have {self.messages} messages"
        if self.published != self.messages:
            yield f"{self.messages - self.published} messages were not published"
        if self.executed != self.messages:
            yield f"{self.messages - self.executed} messages have no receipt"
        if self.fewest_deliveries < FEWEST_DELIVERIES:
            yield f"a message was delivered {self.fewest_deliveries} times only"
        if self.suppressed < self.messages:
            yield f"only {self.suppressed} duplicates of {self.messages} messages were suppressed"
        if self.lost:
            yield f"{self.lost} receipts or payments are lost"
        if self.doubled:
            yield f"{self.doubled} receipts or payments are doubled"

    def lines(self, accepted: int, repeats: int) -> Iterator[str]:
        """The ledger as a person reads it."""
        fewest = f"each message at least {self.fewest_deliveries} times"
        unfinished = self.deliveries - self.executed - self.suppressed
        for label, count, note in (
            ("orders accepted over HTTP", accepted, ""),
            ("orders committed", self.orders, ""),
            ("messages committed", self.messages, ""),
            ("messages published", self.published, ""),
            ("  redelivered", self.redelivered, "the broker had forgotten them"),
            ("published once more", repeats, "past the relay, byte for byte"),
            ("deliveries to the worker", self.deliveries, fewest),
            ("  executed", self.executed, ""),
            ("  duplicates suppressed", self.suppressed, ""),
            ("  without an outcome", unfinished, "killed, or put off; delivered again"),
            ("receipts", self.receipts, ""),
            ("payments", self.payments, ""),
            ("lost", self.lost, ""),
            ("doubled", self.doubled, ""),
        ):
            yield f"  {label:<27}{count:>7}   {note}".rstrip()


def database_clock() -> datetime:
    """The moment from which a ledger counts: the database's clock, not this machine's."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment


def read(since: datetime) -> Ledger:
    with connection.cursor() as cursor:
        cursor.execute(SQL, {"since": since})
        names = [column.name for column in cursor.description]
        return Ledger(**dict(zip(names, cursor.fetchone(), strict=True)))

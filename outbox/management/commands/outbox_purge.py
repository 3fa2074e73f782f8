"""``manage.py outbox_purge``: delete messages that have been over for long enough."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS

from outbox.conf import conf
from outbox.management.databases import database_errors, require_alias
from outbox.models import OutboxMessage
from outbox.ordering_querysets import purge_keys
from outbox.querysets import FINISHED, PURGEABLE


class Command(BaseCommand):
    help = (
        "Delete the messages that have been over for OUTBOX_RETENTION: executed, discarded, and "
        "published without a receipt to wait for; and ordering keys that have no message left. "
        "Others wait for somebody, and are kept."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, help="The database alias to purge."
        )
        parser.add_argument(
            "--state",
            dest="states",
            action="append",
            choices=PURGEABLE,
            help="Messages in this state only, and those that wait for a person where this names "
            "them. May be given more than once.",
        )
        parser.add_argument(
            "--days", type=float, help="Older than so many days (default: OUTBOX_RETENTION)."
        )
        parser.add_argument(
            "--batch-size", type=int, default=1000, help="Most messages in a transaction."
        )

    def handle(self, *args: Any, database: str, batch_size: int, **options: Any) -> None:
        require_alias(database)
        if batch_size < 1:
            raise CommandError(f"--batch-size must be at least 1, not {batch_size}.")
        messages = OutboxMessage.objects.using(database)
        age, states = _age(options["days"]), options["states"] or FINISHED
        with database_errors(database):
            deleted = sum(messages.purge_in_batches(age, batch_size, states))
            keys = purge_keys(database, batch_size)
        self.stdout.write(f"deleted {deleted}")
        if keys:
            self.stdout.write(f"deleted {keys} ordering keys without a message")


def _age(days: float | None) -> timedelta:
    if days is None:
        return conf.RETENTION
    try:
        age = timedelta(days=days)
    except (OverflowError, ValueError):
        age = timedelta(0)
    if age <= timedelta(0):
        raise CommandError(f"--days must be greater than zero and sensible, not {days:g}.")
    return age

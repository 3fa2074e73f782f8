"""``manage.py outbox_purge``: delete messages that have been over for long enough."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS

from idempotency.management.databases import aliases_of, database_errors
from outbox.conf import conf
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
            "--database",
            dest="databases",
            metavar="ALIAS",
            action="append",
            help="The database alias to purge. May be given more than once: one after the other "
            f"(default: {DEFAULT_DB_ALIAS}).",
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

    def handle(
        self, *args: Any, databases: Sequence[str] | None, batch_size: int, **options: Any
    ) -> None:
        aliases = aliases_of(databases)
        if batch_size < 1:
            raise CommandError(f"--batch-size must be at least 1, not {batch_size}.")
        age, states = _age(options["days"]), options["states"] or FINISHED
        problems = []
        for alias in aliases:
            prefix = f"{alias}: " if len(aliases) > 1 else ""
            try:
                with database_errors(alias):
                    messages = OutboxMessage.objects.using(alias)
                    deleted = sum(messages.purge_in_batches(age, batch_size, states))
                    keys = purge_keys(alias, batch_size)
            except CommandError as error:
                problems.append(f"{prefix}{error}")
            else:
                self.stdout.write(f"{prefix}deleted {deleted}")
                if keys:
                    self.stdout.write(f"{prefix}deleted {keys} ordering keys without a message")
        if problems:
            raise CommandError("\n".join(problems))


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

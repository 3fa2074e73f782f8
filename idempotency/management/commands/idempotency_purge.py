"""``manage.py idempotency_purge``: delete keys that have expired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS

from idempotency.management.databases import aliases_of, database_errors
from idempotency.models import IdempotencyKey


class Command(BaseCommand):
    help = "Delete the idempotency keys that have expired; a live lease never has."

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
            "--batch-size", type=int, default=1000, help="Most keys in a transaction."
        )

    def handle(
        self, *args: Any, databases: str | Sequence[str] | None, batch_size: int, **options: Any
    ) -> None:
        aliases = aliases_of(databases)
        if batch_size < 1:
            raise CommandError(f"--batch-size must be at least 1, not {batch_size}.")
        problems = []
        for alias in aliases:
            prefix = f"{alias}: " if len(aliases) > 1 else ""
            keys, deleted = IdempotencyKey.objects.using(alias), 0
            try:
                with database_errors(alias):
                    while batch := keys.purge(batch_size):
                        deleted += batch
            except CommandError as error:
                problems.append(f"{prefix}{error}")
            else:
                self.stdout.write(f"{prefix}deleted {deleted}")
        if problems:
            raise CommandError("\n".join(problems))

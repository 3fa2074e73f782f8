"""``manage.py idempotency_purge``: delete keys that have expired."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from idempotency.models import IdempotencyKey


class Command(BaseCommand):
    help = "Delete the idempotency keys that have expired; a live lease never has."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, help="The database alias to purge."
        )
        parser.add_argument(
            "--batch-size", type=int, default=1000, help="Most keys in a transaction."
        )

    def handle(self, *args: Any, database: str, batch_size: int, **options: Any) -> None:
        if database not in connections:
            raise CommandError(
                f"There is no database {database!r} in DATABASES: {', '.join(connections)}."
            )
        if batch_size < 1:
            raise CommandError(f"--batch-size must be at least 1, not {batch_size}.")
        keys = IdempotencyKey.objects.using(database)
        deleted = 0
        while batch := keys.purge(batch_size):
            deleted += batch
        self.stdout.write(f"deleted {deleted}")

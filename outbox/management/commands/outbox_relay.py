"""``manage.py outbox_relay``: publish committed messages until told to stop."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, Error, ProgrammingError, connections

from outbox.conf import conf
from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.relay import Relay


class Command(BaseCommand):
    help = "Publish the outbox's committed messages to Celery's broker."
    requires_system_checks = "__all__"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="Publish what is due, then exit; 1 if it could not."
        )
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, help="The database alias to publish from."
        )
        parser.add_argument(
            "--batch-size", type=int, help="Most messages in a batch (default: OUTBOX_BATCH_SIZE)."
        )

    def handle(self, *args: Any, once: bool, database: str, **options: Any) -> None:
        batch_size: int | None = options["batch_size"]
        if database not in connections:
            raise CommandError(
                f"There is no database {database!r} in DATABASES: {', '.join(connections)}."
            )
        if batch_size is not None and batch_size < 1:
            raise CommandError(f"--batch-size must be at least 1, not {batch_size}.")
        if problems := list(conf.problems()):
            raise CommandError(" ".join(problems))
        try:
            OutboxMessage.objects.using(database).due().exists()
            relay = Relay(database, batch_size)
            if once:
                self._drain(relay)
            else:
                self._run(relay)
        except (Error, ImproperlyConfigured) as error:
            raise CommandError(f"Database {database!r}: {_one_line(error)}") from error

    def _drain(self, relay: Relay) -> None:
        try:
            result = relay.drain()
        except BrokerUnavailable as error:
            raise CommandError(str(error)) from error
        finally:
            relay.close()
        self.stdout.write(
            f"published {result.published}, refused for now {result.failed}, "
            f"dead {result.dead}, expired {result.expired}"
        )

    def _run(self, relay: Relay) -> None:
        stop = threading.Event()
        signals: list[int] = []

        def handle_signal(number: int, frame: object) -> None:
            if signals:
                # The second one: leave at once. The server lets go of the rows.
                os._exit(128 + number)
            signals.append(number)
            # Not from here: the relay may be waiting for the event, and holds its lock then.
            threading.Thread(target=stop.set).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle_signal)
        self.stdout.write(f"Relaying messages of database {relay.using!r}.")
        try:
            relay.run(stop)
        finally:
            relay.close()
        self.stdout.write("Stopped.")


def _one_line(error: Exception) -> str:
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, ProgrammingError) and "does not exist" in first:
        return f"{first} Run manage.py migrate."
    return first

"""``manage.py outbox_relay``: publish committed messages until told to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from idempotency.management.databases import Unavailable, aliases_of, database_errors
from outbox.conf import conf
from outbox.exceptions import BrokerUnavailable
from outbox.liveness import Liveness
from outbox.models import OutboxMessage
from outbox.relay import Relay

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Command(BaseCommand):
    help = "Publish the outbox's committed messages to Celery's broker."
    requires_system_checks = "__all__"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="Publish what is due, then exit; 1 if it could not."
        )
        parser.add_argument(
            "--database",
            dest="databases",
            metavar="ALIAS",
            action="append",
            help="The database alias to publish from. May be given more than once: each has a "
            f"thread and connections of its own (default: {DEFAULT_DB_ALIAS}).",
        )
        parser.add_argument(
            "--batch-size", type=int, help="Most messages in a batch (default: OUTBOX_BATCH_SIZE)."
        )
        parser.add_argument(
            "--liveness-file",
            metavar="PATH",
            help="A file whose modification time tells when the relay last went round.",
        )

    def handle(
        self, *args: Any, once: bool, databases: Sequence[str] | None, **options: Any
    ) -> None:
        batch_size: int | None = options["batch_size"]
        aliases = aliases_of(databases)
        if batch_size is not None and batch_size < 1:
            raise CommandError(f"--batch-size must be at least 1, not {batch_size}.")
        if problems := list(conf.problems()):
            raise CommandError(" ".join(problems))
        relays = [Relay(alias, batch_size) for alias in aliases]
        if once:
            self._drain(relays)
        else:
            self._run(relays, options["liveness_file"])

    def _drain(self, relays: Sequence[Relay]) -> None:
        """One after the other; what is wrong with one does not keep the next from its turn."""
        problems = []
        for relay in relays:
            prefix = f"{relay.using}: " if len(relays) > 1 else ""
            try:
                with database_errors(relay.using):
                    result = relay.drain()
            except (CommandError, BrokerUnavailable) as error:
                problems.append(f"{prefix}{error}")
            else:
                self.stdout.write(
                    f"{prefix}published {result.published}, refused for now {result.failed}, "
                    f"dead {result.dead}, expired {result.expired}"
                )
            finally:
                relay.close()
        if problems:
            raise CommandError("\n".join(problems))

    def _run(self, relays: Sequence[Relay], liveness_file: str | None) -> None:
        beat = _beat(liveness_file, relays)
        stop = threading.Event()
        _stop_on_signals(stop)
        with ThreadPoolExecutor(len(relays), initializer=_leave_signals_to_main_thread) as pool:
            running = [
                pool.submit(self._relay, relay, stop, partial(beat, relay.using), len(relays) == 1)
                for relay in relays
            ]
            wait(running, return_when=FIRST_EXCEPTION)
            stop.set()
        for ended in running:
            ended.result()
        self.stdout.write("Stopped.")

    def _relay(
        self, relay: Relay, stop: threading.Event, beat: Callable[[], None], alone: bool
    ) -> None:
        """Run in a thread of its own, which has connections of its own."""
        try:
            try:
                with database_errors(relay.using):
                    OutboxMessage.objects.using(relay.using).due().exists()
            except Unavailable:
                # Beside others it is an outage: they go on, and so does this one when it is over.
                if alone:
                    raise
            self.stdout.write(f"Relaying messages of database {relay.using!r}.")
            with database_errors(relay.using):
                relay.run(stop, beat)
        finally:
            relay.close()
            connections.close_all()


def _stop_on_signals(stop: threading.Event) -> None:
    signals: list[int] = []

    def handle_signal(number: int, frame: object) -> None:
        if signals:
            # The second one: leave at once. The server lets go of the rows.
            os._exit(128 + number)
        signals.append(number)
        stop.set()

    for number in STOP_SIGNALS:
        signal.signal(number, handle_signal)


def _leave_signals_to_main_thread() -> None:
    """Python handles a signal in the main thread, which sleeps on where another one is sent it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _beat(liveness_file: str | None, relays: Sequence[Relay]) -> Callable[[str], None]:
    if liveness_file is None:
        return lambda alias: None
    try:
        return Liveness(Path(liveness_file), [relay.using for relay in relays]).beat
    except OSError as error:
        raise CommandError(f"--liveness-file cannot be written: {error}") from error

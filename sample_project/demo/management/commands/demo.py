"""manage.py demo"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import current_app
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.core.management.utils import get_random_secret_key
from django.db import Error
from environ import Env
from kombu.exceptions import OperationalError

from sample_project.demo.cast import Cast, ProcessEnded
from sample_project.demo.client import OrderRefused
from sample_project.demo.progress import Progress
from sample_project.demo.story import Stalled, Story
from sample_project.servers import PostgresServer, ServerMissing, ValkeyServer, free_port

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from types import FrameType

ADMIN = "demo"
# Seconds, short ones, so that nobody has to wait for what a killed worker left behind: the broker
# hands out again what it had noted as taken, and the relay publishes again what the broker forgot.
VISIBILITY_TIMEOUT = 5
REDELIVER_AFTER = 4
# Each says what happened: a server that is missing or does not start, or that does not answer.
ANTICIPATED = (ServerMissing, RuntimeError, Error, OperationalError, ProcessEnded, OrderRefused)


class Command(BaseCommand):
    help = (
        "Run the shop on real servers, deliver each message at least twice, kill the worker and "
        "the relay in the middle, and print a ledger. The exit status is 0 if it balances. "
        "Without DATABASE_URL and CELERY_BROKER_URL it starts a PostgreSQL and a Valkey of its own."
    )
    # The database that they would look at is not there yet.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--orders", type=int, default=200, help="how many; default: 200")
        parser.add_argument(
            "--exit", action="store_true", dest="leave", help="leave after the ledger"
        )

    def handle(self, *, orders: int, leave: bool, **_: Any) -> None:
        if orders < 1:
            raise CommandError("--orders must be at least 1.")
        self._told_to_leave = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        try:
            with ExitStack() as stack:
                self._run(stack, Progress(sys.stdout), orders, leave=leave)
        except ANTICIPATED as error:
            raise CommandError(str(error).strip()) from error

    def _run(self, stack: ExitStack, progress: Progress, orders: int, *, leave: bool) -> None:
        environment = self._servers(stack, progress)
        call_command("migrate", verbosity=0)
        password = secrets.token_urlsafe(9)
        _create_admin(password)
        logs = Path(tempfile.mkdtemp(prefix="demo-"))
        stack.push(partial(_remove_logs, logs))
        port = free_port()
        cast = Cast(logs, environment, port)
        stack.callback(cast.stop)
        progress.say(f"The processes write their logs to {logs}.")
        story = Story(cast, port, orders, progress)
        problems = []
        try:
            story.play()
        except Stalled as error:
            problems.append(str(error))
        progress.show("\nThe ledger, read from the database:\n")
        for line in story.ledger.lines(story.accepted, story.repeats):
            progress.show(line)
        progress.show()
        problems += story.ledger.problems(story.accepted)
        if problems:
            raise CommandError(f"The ledger does not balance: {'; '.join(problems)}.")
        progress.show("The ledger balances.")
        if not leave:
            progress.show(
                f"\n  Shop    http://127.0.0.1:{port}/"
                f"\n  Admin   http://127.0.0.1:{port}/admin/   user {ADMIN}, password {password}"
                "\n\nCtrl-C ends it all."
            )
            if not self._told_to_leave:
                signal.pause()
            raise SystemExit(128 + self._told_to_leave)

    def _leave(self, number: int, _frame: FrameType | None) -> None:
        # Where the signal met a destructor, Python drops the exception: then the end comes later.
        self._told_to_leave = number
        raise SystemExit(128 + number)

    def _servers(self, stack: ExitStack, progress: Progress) -> dict[str, str]:
        """Start the servers that the environment does not name; return the children's settings."""
        environment = {
            "SECRET_KEY": get_random_secret_key(),
            "BROKER_VISIBILITY_TIMEOUT": str(VISIBILITY_TIMEOUT),
            "OUTBOX_REDELIVER_AFTER": str(REDELIVER_AFTER),
        }
        if "DATABASE_URL" not in os.environ:
            postgres = stack.enter_context(PostgresServer(database="shop"))
            environment["DATABASE_URL"] = postgres.url
            # As Django's test runner does: the settings are read, but no connection is open.
            settings.DATABASES["default"].update(Env.db_url_config(postgres.url))
            progress.say(f"PostgreSQL runs on port {postgres.port}.")
        if "CELERY_BROKER_URL" not in os.environ:
            valkey = stack.enter_context(ValkeyServer())
            environment["CELERY_BROKER_URL"] = valkey.url
            current_app.conf.update(broker_url=valkey.url)
            progress.say(f"Valkey runs on port {valkey.port}.")
        return environment


def _create_admin(password: str) -> None:
    user, _ = User.objects.get_or_create(
        username=ADMIN, defaults={"is_staff": True, "is_superuser": True}
    )
    user.set_password(password)
    user.save()


def _remove_logs(logs: Path, kind: type[BaseException] | None, *_: object) -> None:
    """Keep them where something went wrong."""
    if kind is None or issubclass(kind, SystemExit):
        shutil.rmtree(logs)

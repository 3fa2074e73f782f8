"""``manage.py outbox_status``: what waits, and whether somebody must look at it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS

from idempotency.management.databases import aliases_of, database_errors
from outbox.status_querysets import Status, status_of

ALERT = 1
COULD_NOT_LOOK = 2
BOUNDS = ("max_lag", "max_dead", "max_xmin_age")


class Command(BaseCommand):
    help = (
        "Show what waits in the outbox. Exits with 1 when something is beyond its bound, and with "
        "2 when it could not look."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--json", action="store_true", help="One JSON object in one line for each database."
        )
        parser.add_argument(
            "--database",
            dest="databases",
            metavar="ALIAS",
            action="append",
            help="The database alias to look at. May be given more than once: the bounds are for "
            f"each (default: {DEFAULT_DB_ALIAS}).",
        )
        parser.add_argument(
            "--max-lag",
            type=float,
            default=60,
            help="Seconds that the oldest due message may have waited (default: 60).",
        )
        parser.add_argument(
            "--max-dead",
            type=int,
            default=0,
            help="How many messages may wait for a person: dead, failed or stuck (default: 0).",
        )
        parser.add_argument(
            "--max-xmin-age",
            type=float,
            default=3600,
            help="Seconds for which a transaction or slot may have kept vacuum from dead rows "
            "(default: 3600).",
        )

    def handle(self, *args: Any, databases: Sequence[str] | None, **options: Any) -> None:
        aliases = aliases_of(databases, returncode=COULD_NOT_LOOK)
        _require_bounds(options)
        problems, returncode = [], ALERT
        for alias in aliases:
            prefix = f"{alias}: " if len(aliases) > 1 else ""
            try:
                with database_errors(alias):
                    status = status_of(alias)
            except CommandError as error:
                problems.append(f"{prefix}{error}")
                returncode = COULD_NOT_LOOK
                continue
            alerts = list(_alerts(status, options))
            problems += [f"{prefix}{alert}" for alert in alerts]
            if options["json"]:
                self.stdout.write(json.dumps({**asdict(status), "alerts": alerts}))
            else:
                self.stdout.write("\n".join(_lines(status)))
        if problems:
            raise CommandError(
                ("\n" if len(aliases) > 1 else " ").join(problems), returncode=returncode
            )


def _require_bounds(bounds: dict[str, Any]) -> None:
    """Nothing is beyond a bound that is no number, and all is beyond a negative one."""
    for name in BOUNDS:
        if not 0 <= bounds[name] < math.inf:
            raise CommandError(
                f"--{name.replace('_', '-')} must be a finite number that is not negative, "
                f"not {bounds[name]}.",
                returncode=COULD_NOT_LOOK,
            )


def _alerts(status: Status, bounds: dict[str, Any]) -> Iterator[str]:
    if status.oldest_due_seconds > bounds["max_lag"]:
        yield (
            f"The oldest due message has waited for {status.oldest_due_seconds:.0f} s: is a relay "
            "running, and the broker there?"
        )
    waiting = status.dead + status.failed + status.stuck
    if waiting > bounds["max_dead"]:
        yield (
            f"{waiting} messages wait for somebody to retry or discard them: {status.dead} dead, "
            f"{status.failed} failed, {status.stuck} stuck."
        )
    holder = status.xmin_holder
    if holder and holder.seconds is not None and holder.seconds > bounds["max_xmin_age"]:
        yield (
            f"The {holder.kind} {holder.name} has kept vacuum from dead rows for "
            f"{holder.seconds:.0f} s: end it."
        )


def _lines(status: Status) -> Iterator[str]:
    yield f"database    {status.database}"
    yield f"pending     {status.pending}"
    yield f"due         {status.due}, the oldest for {status.oldest_due_seconds:.1f} s"
    for state in ("dead", "failed"):
        yield f"{state:12}{getattr(status, state)}"
        for group in status.errors:
            if group.status == state:
                yield f"{'':12}{group.count} of {group.task}: {group.error}"
    yield f"stuck       {status.stuck}"
    yield f"blocked     {status.blocked}"
    for held in status.held_keys:
        yield f"{'':12}{held.ordering_key}, by {held.message}, which is {held.state}"
    yield f"xmin        {_held(status)}"


def _held(status: Status) -> str:
    holder = status.xmin_holder
    if holder is None:
        return "not held"
    since = "" if holder.seconds is None else f"for {holder.seconds:.0f} s, "
    return f"held by {holder.kind} {holder.name}, {since}{holder.transactions} transactions"

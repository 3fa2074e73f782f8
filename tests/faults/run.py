"""The fault suite for as long as one likes: ``python -m tests.faults.run --help``."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sample_project.servers import PostgresServer, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.campaign import Outcome, Plan
    from tests.servers.rabbitmq import RabbitMQ

BROKERS = ("rabbitmq", "valkey")
FEWEST_FAULTS = 10
BUG = "PLANTED_BUG"

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds; print a line for each, write the report; 1 if any has failed or is void."""
    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("amqp").setLevel(logging.WARNING)
    outcomes: list[Outcome] = []
    with Machine(options.postgres_bin, options.bug) as machine:
        for number in range(options.seeds):
            broker = BROKERS[number % 2] if options.broker == "both" else options.broker
            if machine.interrupted:
                break
            outcome = machine.run(broker, _plan(options, options.first_seed + number))
            outcomes.append(outcome)
            _tell(outcome)
            if options.report:
                _report(options, outcomes)
    return int(any(outcome.violations() or outcome.void() for outcome in outcomes))


class Machine:
    """One PostgreSQL server, and a server of each kind of broker that is asked for."""

    def __init__(self, postgres_bin: str | None, bug: str) -> None:
        self._postgres = PostgresServer(
            bin_directory=postgres_bin, settings={"fsync": "off", "full_page_writes": "off"}
        )
        self._bug = bug
        self._servers: dict[str, RabbitMQ | ValkeyServer] = {}
        self._stack = ExitStack()
        self._enough = threading.Event()

    def __enter__(self) -> Self:
        signal.signal(signal.SIGINT, self._interrupt)
        self._stack.enter_context(self._postgres)
        os.environ["DATABASE_URL"] = self._postgres.url
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.faults.settings"
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", run_syncdb=True, verbosity=0)
        if self._bug:
            # For the relays and workers, which are started later.
            os.environ[BUG] = self._bug
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def interrupted(self) -> bool:
        return self._enough.is_set()

    def run(self, broker: str, plan: Plan) -> Outcome:
        """Run one plan, on empty tables and an empty broker."""
        from django.core.management import call_command

        from tests.faults.campaign import Campaign
        from tests.faults.system import System
        from tests.servers.brokers import open_broker
        from tests.servers.children import Children

        call_command("flush", interactive=False, verbosity=0)
        directory = Path(tempfile.mkdtemp(prefix=f"faults-{plan.seed}-"))
        logger.info("The processes' logs are in %s", directory)
        for opened in open_broker(broker, self._server(broker)):
            children = Children(directory, opened.env)
            with opened.serving_app():
                try:
                    return Campaign(
                        System(children, opened), self._postgres, plan, self._enough
                    ).run()
                finally:
                    children.end()
        raise AssertionError(f"{broker} was not opened")

    def _interrupt(self, number: int, frame: object) -> None:
        """The first Ctrl-C: break no more, and see what becomes of it all. The second: leave."""
        if self._enough.is_set():
            raise KeyboardInterrupt
        self._enough.set()

    def _server(self, broker: str) -> RabbitMQ | ValkeyServer:
        from tests.servers.rabbitmq import RabbitMQ

        if broker not in self._servers:
            server = RabbitMQ() if broker == "rabbitmq" else ValkeyServer()
            self._stack.enter_context(server)
            self._servers[broker] = server
        return self._servers[broker]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many runs, one seed each")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=45, help="of each safety phase, about")
    parser.add_argument("--rate", type=float, default=75, help="messages committed a second")
    parser.add_argument("--every", type=float, default=3, help="seconds from fault to fault")
    parser.add_argument("--broker", choices=[*BROKERS, "both"], default="both", help="in turn")
    parser.add_argument("--postgres-bin", help="the directory of PostgreSQL's programs")
    parser.add_argument("--report", type=Path, help="write a section of this Markdown file")
    parser.add_argument("--title", default="The runs", help="of that section")
    parser.add_argument("--bug", default="", help="plant this bug in every relay and worker")
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace, seed: int) -> Plan:
    from tests.faults.campaign import Plan

    return Plan(
        seed,
        messages=int(options.seconds * options.rate),
        faults=max(FEWEST_FAULTS, int(options.seconds / options.every)),
        rate=options.rate,
    )


def _tell(outcome: Outcome) -> None:
    wrong = outcome.violations() + [f"void: not {name}" for name in outcome.void()]
    lines = [f"{outcome}; {', '.join(wrong) or 'sound'}", *outcome.suspects]
    sys.stdout.write("\n    ".join(lines) + "\n")
    sys.stdout.flush()


def _report(options: argparse.Namespace, outcomes: list[Outcome]) -> None:
    from tests.faults.report import section, write

    write(options.report, options.title, section(outcomes))


if __name__ == "__main__":
    raise SystemExit(main())

"""A system under test: one database, one broker, relays and workers as real processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import redis
from django.db import transaction

from outbox.models import OutboxMessage
from tests.faults.ledger import backlog
from tests.helpers import wait_for
from tests.project.models import Intent
from tests.project.tasks import record_once
from tests.servers.children import database_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sample_project.processes import Process
    from tests.servers.brokers import Broker
    from tests.servers.children import Children


class System:
    """Starts its processes with fault points and planted bugs in reach, and waits for their work.

    ``using`` is the database alias that this process writes to and audits; the relays and workers
    know that database as their default.
    """

    def __init__(self, children: Children, broker: Broker, using: str = "default") -> None:
        self.broker = broker
        self.using = using
        self._children = children

    def start_relay(self, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        return self._children.start_relay(*arguments, env=self._env(env))

    def start_relays(self, number: int, *arguments: str) -> list[Process]:
        """Start relays; return when all of them look for messages."""
        relays = [self.start_relay(*arguments) for _ in range(number)]
        for relay in relays:
            wait_for(lambda relay=relay: "Relaying" in relay.output(), message=relay.output)  # type: ignore[misc]
        return relays

    def start_worker(
        self, *, ready: bool = True, concurrency: int = 1, env: Mapping[str, str] | None = None
    ) -> Process:
        return self._children.start_worker(
            ready=ready,
            concurrency=concurrency,
            # That a worker is ready is a line of INFO, and so are two for each message.
            loglevel="INFO" if ready else "WARNING",
            env=self._env(env),
        )

    def commit(
        self,
        labels: Iterable[str],
        *,
        lock: int | None = None,
        ordering_key: str = "",
        **options: Any,
    ) -> list[UUID]:
        """Commit one guarded message for each label in one transaction; return their ids.

        The tasks wait for the advisory lock, if one is named.
        """
        keys = list(labels)
        with transaction.atomic(using=self.using):
            Intent.objects.using(self.using).bulk_create(
                Intent(label=label, ordering_key=ordering_key) for label in keys
            )
            messages = OutboxMessage.objects.enqueue_many(
                [record_once.s(label, lock=lock).set(**options) for label in keys],
                keys=keys,
                ordering_keys=[ordering_key] * len(keys),
                using=self.using,
            )
        return [message.id for message in messages]

    def undelivered(self) -> int:
        """Messages that the broker holds ready; on Redis those that a worker died with as well."""
        waiting = self.broker.queue_length()
        if not self.broker.is_amqp:
            with redis.Redis.from_url(self.broker.url) as client:
                waiting += cast(int, client.hlen("unacked"))
        return waiting

    def take_message_ids(self) -> list[UUID]:
        """Take every message off the queue; return the ids that they bear."""
        ids = []
        with self.broker.connection() as connection:
            channel: Any = connection.channel()
            while (message := channel.basic_get("celery", no_ack=True)) is not None:
                ids.append(UUID(message.headers["id"]))
        return ids

    def await_published(self, *, timeout: float = 60) -> None:
        """Return when no message waits for a relay."""
        wait_for(lambda: backlog(self.using).pending == 0, timeout=timeout, message=self.describe)

    def await_executed(self, *, timeout: float = 60) -> None:
        """Return when every message has executed and the broker holds nothing more."""
        wait_for(
            lambda: self.quiet() and backlog(self.using).in_flight == 0,
            timeout=timeout,
            interval=0.1,
            message=self.describe,
        )

    def quiet(self) -> bool:
        """Whether nothing is on its way: no message waits for a relay or at the broker.

        Looks twice, because a message that a worker has just taken is nowhere for a moment.
        """
        if self._waiting():
            return False
        time.sleep(0.5)
        return not self._waiting()

    def _waiting(self) -> int:
        return backlog(self.using).pending + self.undelivered()

    def describe(self) -> str:
        return f"{backlog(self.using)}, undelivered {self.undelivered()}"

    def _env(self, env: Mapping[str, str] | None) -> dict[str, str]:
        return {
            **self.broker.env,
            "DATABASE_URL": database_url(self.using),
            "DJANGO_SETTINGS_MODULE": "tests.faults.settings",
            **(env or {}),
        }

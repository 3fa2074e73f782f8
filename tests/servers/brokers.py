"""One broker as a test sees it: a server, and an address on it that no other test uses."""

from __future__ import annotations

import gc
import itertools
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import redis
from amqp.exceptions import AMQPError
from kombu import pools
from kombu.exceptions import ChannelError, OperationalError

from sample_project.servers import ValkeyServer
from tests.project.celery import app
from tests.project.settings import broker_transport_options
from tests.servers.rabbitmq import RabbitMQ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu import Connection

_numbers = itertools.count(1)


@dataclass
class Broker:
    """A fresh virtual host or database; ``server`` may be killed and started again."""

    name: str
    server: RabbitMQ | ValkeyServer
    url: str
    transport_options: dict[str, object] = field(default_factory=dict)

    @property
    def is_amqp(self) -> bool:
        return isinstance(self.server, RabbitMQ)

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What asking it something may raise when it is busy, or has just come back."""
        return (OSError, OperationalError, AMQPError, redis.RedisError)

    @property
    def env(self) -> dict[str, str]:
        """Environment that points a process of the test project at this broker."""
        return {"CELERY_BROKER_URL": self.url}

    def connection(self) -> Connection:
        """A connection of its own, with the app's options; close it."""
        return app.connection_for_write(self.url)

    def queue_length(self, queue: str = "celery") -> int:
        """Messages ready in a queue, 0 for one that does not exist; unacked ones do not count."""
        with self.connection() as connection:
            channel: Any = connection.channel()
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except ChannelError:
                return 0

    def flush(self) -> None:
        """Call it after a first publish and before ``server.kill()``: see ``RabbitMQ.flush``."""
        if isinstance(self.server, RabbitMQ):
            self.server.flush()

    def purge(self) -> None:
        """Lose every message that is ready, and nothing else."""
        if isinstance(self.server, RabbitMQ):
            self.server.api("DELETE", f"queues/{self._vhost}/celery/contents")
        else:
            with redis.Redis.from_url(self.url) as client:
                client.delete("celery")

    def wipe(self) -> None:
        """Lose everything: messages, queues and bindings, as with a deleted volume."""
        if isinstance(self.server, RabbitMQ):
            self.server.wipe()
            self.server.start()
            self.server.create_vhost(self._vhost)
        else:
            with redis.Redis.from_url(self.url) as client:
                client.flushall()

    @property
    def _vhost(self) -> str:
        return self.url.rpartition("/")[2]

    @contextmanager
    def serving_app(self) -> Iterator[None]:
        """Make this the broker of the test project's app, in this process."""
        before = (os.environ.get("CELERY_BROKER_URL"), app.conf.broker_transport_options)
        os.environ["CELERY_BROKER_URL"] = self.url  # Celery prefers it to its settings
        app.conf.update(broker_transport_options=self.transport_options)
        _forget_connections()
        try:
            yield
        finally:
            _forget_connections()
            os.environ.pop("CELERY_BROKER_URL")
            if before[0] is not None:
                os.environ["CELERY_BROKER_URL"] = before[0]
            app.conf.update(broker_transport_options=before[1])
            gc.collect()  # a connection left open is reported in the test that left it


def open_broker(name: str, server: RabbitMQ | ValkeyServer) -> Iterator[Broker]:
    """Yield a broker on a running server; afterwards the server runs again and holds nothing."""
    server.start()
    number = next(_numbers)
    if isinstance(server, RabbitMQ):
        vhost = f"test-{os.getpid()}-{number}"
        url = server.create_vhost(vhost)
        yield Broker(name, server, url, broker_transport_options(url))
        server.start()
        server.delete_vhost(vhost)
    else:
        url = server.url_of(number % 1024)
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        yield Broker(name, server, url, broker_transport_options(url))
        server.start()
        with redis.Redis.from_url(url) as client:
            client.flushdb()


def _forget_connections() -> None:
    """Close the app's pooled connections, which lead to another test's broker."""
    pools.reset()
    cast(Any, app)._after_fork()

"""A broker in this process, for what does not depend on which broker it is."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import pytest
from celery import current_app
from kombu import pools
from kombu.transport.memory import Channel

from outbox.relay import Relay
from tests.project.celery import app
from tests.unit.outbox.wires import forget_settings

if TYPE_CHECKING:
    from collections.abc import Iterator


class MemoryBroker:
    """kombu's memory transport, with nothing of another test in it."""

    def queue(self, name: str = "celery") -> list[dict[str, Any]]:
        """The messages of a queue, as kombu keeps them."""
        queues: dict[str, Any] = Channel.queues
        return list(queues[name].queue) if name in queues else []

    def lose(self, name: str = "celery") -> None:
        """Forget what is in a queue, as a broker may."""
        queues: dict[str, Any] = Channel.queues
        queues[name].queue.clear()

    def ids(self, name: str = "celery") -> list[str]:
        return [message["headers"]["id"] for message in self.queue(name)]


@pytest.fixture
def memory_broker() -> Iterator[MemoryBroker]:
    before = os.environ.pop("CELERY_BROKER_URL", None)
    conf: Any = app.conf
    url, conf.broker_url = conf.broker_url, "memory://"
    _forget()
    try:
        yield MemoryBroker()
    finally:
        conf.broker_url = url
        if before is not None:
            os.environ["CELERY_BROKER_URL"] = before
        _forget()


@pytest.fixture
def relay(memory_broker: MemoryBroker) -> Iterator[Relay]:
    """A relay in this process to the memory broker."""
    with closing(Relay()) as relay:
        yield relay


@pytest.fixture
def amqp() -> Iterator[None]:
    """The rules of AMQP: a URL that nobody connects to."""
    before = os.environ.get("CELERY_BROKER_URL")
    os.environ["CELERY_BROKER_URL"] = "amqp://guest@127.0.0.1:1//"
    app: Any = current_app
    app._after_fork()
    try:
        yield
    finally:
        os.environ.pop("CELERY_BROKER_URL")
        if before is not None:
            os.environ["CELERY_BROKER_URL"] = before
        app._after_fork()


@pytest.fixture
def app_conf() -> Iterator[Any]:
    """The app's settings, which may be changed: they are as before afterwards."""
    conf: Any = current_app.conf
    names = ("task_always_eager", "task_send_sent_event", "task_protocol", "result_backend")
    before = {name: conf[name] for name in names}
    try:
        yield conf
    finally:
        conf.update(before)
        forget_settings()


def _forget() -> None:
    cast(Any, Channel).queues.clear()
    pools.reset()
    cast(Any, app)._after_fork()

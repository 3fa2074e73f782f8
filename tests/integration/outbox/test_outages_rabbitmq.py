"""RabbitMQ takes nothing more: short of memory, or it knows the relay's credentials no longer."""

from __future__ import annotations

import os
import signal
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.db import transaction

from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.relay import Relay, RelayResult
from tests.helpers import wait_for
from tests.integration.outbox.queues import arrivals
from tests.integration.outbox.test_outbox_relay import is_held
from tests.project import tasks
from tests.servers.rabbitmq import RabbitMQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sample_project.processes import Process
    from tests.servers.brokers import Broker

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True),
]

record: Any = tasks.record
messages = OutboxMessage.objects
BLOCKED = "short of memory or disk"


def enqueue(number: int) -> set[str]:
    with transaction.atomic():
        return {str(row.pk) for row in messages.enqueue_many([record.s("x")] * number)}


def assert_nothing_is_counted(waiting: int) -> None:
    assert messages.pending().count() == waiting
    assert set(messages.values_list("attempts", flat=True)) <= {0}


@pytest.fixture
def server(broker: Broker) -> RabbitMQ:
    assert isinstance(broker.server, RabbitMQ)
    return broker.server


@pytest.fixture
def relay(broker: Broker) -> Iterator[Relay]:
    with closing(Relay()) as relay:
        yield relay


# Short of memory


def test_a_memory_alarm_is_an_outage_that_ends_by_itself(
    server: RabbitMQ, broker: Broker, start_relay: Callable[..., Process]
) -> None:
    relay = start_relay()
    first = enqueue(1)
    wait_for(lambda: broker.queue_length() == 1, message=relay.output)
    with server.out_of_memory():
        rows = enqueue(20)
        wait_for(lambda: "is unavailable: " in relay.output(), message=relay.output)
        assert "short of memory or disk" in relay.output()
        assert_nothing_is_counted(20)
    wait_for(lambda: messages.published().count() == 21, message=relay.output)
    assert set(arrivals(broker, "celery")) == first | rows
    assert relay.output().count("is unavailable: ") == 1
    wait_for(lambda: "Available again" in relay.output(), message=relay.output)


def test_a_blocked_connection_is_told_at_once(server: RabbitMQ, relay: Relay) -> None:
    """Not after two thirds of OUTBOX_CLAIM_TIMEOUT, for which the rows would be held."""
    enqueue(1)
    assert relay.run_once() == RelayResult(published=1)
    with server.out_of_memory():
        enqueue(3)
        with pytest.raises(BrokerUnavailable, match="short of memory or disk"):
            relay.run_once()
        assert_nothing_is_counted(3)
    wait_for(lambda: published(relay) == 4)


def published(relay: Relay) -> int:
    with suppress(BrokerUnavailable):
        relay.run_once()
    return len(messages.published())


# Credentials


@pytest.fixture
def relay_of_user(server: RabbitMQ, broker: Broker) -> Iterator[Relay]:
    """A relay that connects as the user "relay"."""
    server.create_user("relay", "first", vhost_of(broker))
    try:
        # Put back here: before the broker's own address is.
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("CELERY_BROKER_URL", url_of(broker, "relay", "first"))
            with closing(Relay()) as relay:
                yield relay
    finally:
        with suppress(OSError):
            server.delete_user("relay")


def vhost_of(broker: Broker) -> str:
    return broker.url.rpartition("/")[2]


def url_of(broker: Broker, name: str, password: str) -> str:
    return f"amqp://{name}:{password}@{broker.url.partition('@')[2]}"


def test_credentials_that_are_revoked_while_connected_are_an_outage(
    server: RabbitMQ, broker: Broker, relay_of_user: Relay
) -> None:
    rows = enqueue(3)
    assert relay_of_user.run_once() == RelayResult(published=3)
    server.delete_user("relay")
    rows |= enqueue(300)
    with pytest.raises(BrokerUnavailable, match="ACCESS_REFUSED") as told:
        wait_for(relay_of_user.run_once)
    assert "first" not in str(told.value)
    assert_nothing_is_counted(300)
    server.create_user("relay", "first", vhost_of(broker))
    assert relay_of_user.run_once() == RelayResult(published=300)
    assert set(arrivals(broker, "celery")) == rows


def test_a_virtual_host_that_is_forbidden_while_connected_is_an_outage(
    server: RabbitMQ, broker: Broker, relay_of_user: Relay
) -> None:
    enqueue(1)
    assert relay_of_user.run_once() == RelayResult(published=1)
    server.forbid(vhost_of(broker), "relay")
    relay_of_user.close()
    enqueue(3)
    with pytest.raises(BrokerUnavailable, match=r"NOT_ALLOWED|ACCESS_REFUSED"):
        relay_of_user.run_once()
    assert_nothing_is_counted(3)
    server.create_user("relay", "first", vhost_of(broker))
    assert relay_of_user.run_once() == RelayResult(published=3)


def test_a_permission_that_is_revoked_is_each_messages_own_error_until_it_is_back(
    server: RabbitMQ, broker: Broker, relay_of_user: Relay
) -> None:
    """A fresh connection works: the broker refuses what goes to that exchange, and says so."""
    enqueue(1)
    assert relay_of_user.run_once() == RelayResult(published=1)
    server.permit(vhost_of(broker), "relay", write="^$")
    relay_of_user.close()  # a channel remembers what it was permitted
    rows = enqueue(3)
    assert relay_of_user.run_once() == RelayResult(failed=3)
    for message in messages.pending():
        assert message.attempts == 1
        assert "ACCESS_REFUSED" in message.errors[0]["error"]
    server.permit(vhost_of(broker), "relay")
    wait_for(lambda: published(relay_of_user) == 4)
    assert rows < set(arrivals(broker, "celery"))


def test_wrong_credentials_are_told_once_and_waited_for(
    server: RabbitMQ, broker: Broker, start_relay: Callable[..., Process]
) -> None:
    server.create_user("late", "another", vhost_of(broker))
    try:
        relay = start_relay(env={"CELERY_BROKER_URL": url_of(broker, "late", "secret")})
        enqueue(3)
        wait_for(lambda: "is unavailable: " in relay.output(), message=relay.output)
        (line,) = [line for line in relay.output().splitlines() if "is unavailable: " in line]
        assert "ACCESS_REFUSED" in line
        assert "secret" not in relay.output()
        server.create_user("late", "secret", vhost_of(broker))
        wait_for(lambda: broker.queue_length() == 3, message=relay.output)
        wait_for(lambda: messages.published().count() == 3)
        assert relay.output().count("is unavailable: ") == 1
    finally:
        server.delete_user("late")


# Frozen


def test_a_second_signal_leaves_a_broker_that_hangs(
    server: RabbitMQ, broker: Broker, start_relay: Callable[..., Process]
) -> None:
    relay = start_relay()
    enqueue(1)
    wait_for(lambda: messages.published().count() == 1, message=relay.output)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        enqueue(3)
        wait_for(is_held, message=relay.output)
        # Two of one kind might be taken for one.
        relay.send_signal(signal.SIGTERM)
        relay.send_signal(signal.SIGINT)
        assert relay.wait(5) in {128 + signal.SIGTERM, 128 + signal.SIGINT}
    finally:
        os.kill(server.pid, signal.SIGCONT)
    wait_for(lambda: not is_held())
    assert_nothing_is_counted(3)

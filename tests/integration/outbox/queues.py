"""What is in a broker's queues."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.servers.brokers import Broker


def take_all(broker: Broker, *queues: str) -> list[Any]:
    """Take every message out of the queues."""
    taken = []
    with broker.connection() as connection:
        channel: Any = connection.channel()
        for queue in queues:
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                taken.append(channel.message_to_python(message))
    return taken


def arrivals(broker: Broker, *queues: str) -> Counter[str]:
    """Take every message out of the queues; return how often each id was there."""
    return Counter(message.headers["id"] for message in take_all(broker, *queues))

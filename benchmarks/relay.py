"""The relay against its floors: the same prebuilt messages, no database, confirms collected.

Of AMQP there are two: one publishes everything before it waits for the first confirm, and knows of
nothing what became of it until then; the other waits after each 500, as batches do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.harness import Ratio, project, seconds

MESSAGES = 20_000
BATCH = 500


def relay(broker: str = "rabbitmq", rounds: int = 5) -> list[Ratio]:
    """Drain rows with one relay; publish the same messages with kombu alone; compare the rates."""
    with project(broker):
        from celery import current_app

        from outbox.models import OutboxMessage
        from outbox.relay import Relay

        drain = Relay()
        drain.run_once()
        floors = {"everything at once": MESSAGES}
        if broker == "rabbitmq":
            floors[f"{BATCH} at a time"] = BATCH
        ratios: dict[str, list[float]] = {name: [] for name in floors}
        for _ in range(rounds):
            enqueue(MESSAGES)
            prebuilt = list(OutboxMessage.objects.pending().iterator())
            ours = seconds(drain.drain)
            assert not OutboxMessage.objects.pending().exists()
            assert waiting(current_app) == MESSAGES
            print(f"  relay {MESSAGES / ours:,.0f}/s", end="")
            for name, batch in floors.items():
                floor = seconds(partial(_floor, current_app, prebuilt, batch))
                assert waiting(current_app) == MESSAGES
                print(f"   kombu, {name} {MESSAGES / floor:,.0f}/s", end="")
                ratios[name].append(floor / ours)
            print()
        drain.close()
    return [
        Ratio(
            f"relay to {broker}, rate over kombu's without a database, {name}",
            tuple(values),
            at_least=0.85 if broker == "rabbitmq" else 0.8,
        )
        for name, values in ratios.items()
    ]


def _floor(app: Any, messages: list[Any], batch: int) -> None:
    from kombu import Producer

    with app.connection_for_write(transport_options={"confirm_publish": False}) as connection:
        channel: Any = connection.channel()
        producer: Any = Producer(channel, auto_declare=False)
        if connection.transport.driver_type == "amqp":
            _publish_confirmed(connection, channel, producer, messages, batch)
        else:
            with producer.batch():
                _publish(producer, messages)


def _publish_confirmed(
    connection: Any, channel: Any, producer: Any, messages: list[Any], batch: int
) -> None:
    last = 0
    singles: set[int] = set()

    def on_ack(tag: int, multiple: bool) -> None:
        nonlocal last, singles
        if multiple:
            singles = {single for single in singles if single > tag}
            last = tag
        else:
            singles.add(tag)
        while last + 1 in singles:
            last += 1
            singles.remove(last)

    channel.confirm_select()
    channel.events["basic_ack"].add(on_ack)
    for start in range(0, len(messages), batch):
        published = messages[start : start + batch]
        _publish(producer, published)
        while last < start + len(published):
            connection.drain_events(timeout=30)


def _publish(producer: Any, messages: list[Any]) -> None:
    for message in messages:
        producer.publish(
            message.body,
            exchange=message.exchange,
            routing_key=message.routing_key,
            headers=message.headers,
            mandatory=True,
            **message.properties,
        )


def enqueue(count: int) -> None:
    """Write so many messages in one transaction, a thousand with each INSERT."""
    from django.db import transaction

    from outbox.models import OutboxMessage
    from tests.project.tasks import record

    with transaction.atomic():
        for start in range(0, count, 1000):
            numbers = range(start, min(start + 1000, count))
            OutboxMessage.objects.enqueue_many([record.s(str(number)) for number in numbers])


def waiting(app: Any) -> int:
    """Return how many messages are in the queue, and empty it."""
    with app.connection_for_write() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.channel())
        return int(queue.purge())

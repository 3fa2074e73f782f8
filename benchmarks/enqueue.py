"""What ``enqueue()`` adds to a transaction, over what a task or a bare row adds to it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Ratio, project, seconds

if TYPE_CHECKING:
    from kombu import Producer

VIEWS = 400
# The broker goes on with a message for a while after its confirm: views in turn would pay for it.
IN_A_ROW = 50

MANY = 100
TRANSACTIONS = {1: 500, MANY: 60}
"""How many transactions of each kind in a round, by the number of messages in one."""
INSERT = """
INSERT INTO outbox_outboxmessage (
    id, task, status, exchange, routing_key, queue, headers, properties, body, key,
    available_at, expires_at, awaits_receipt, attempts, errors, created_at
)
VALUES {rows}
"""
COLUMNS = 16


def enqueue(rounds: int = 7) -> list[Ratio]:
    """Time the same view (one row in one transaction) without a task, and both ways with one."""
    with project("rabbitmq"):
        from django.db import transaction
        from django.http import HttpRequest, HttpResponse

        from outbox.models import OutboxMessage
        from tests.project.models import Effect
        from tests.project.tasks import record

        def bare(request: HttpRequest) -> HttpResponse:
            with transaction.atomic():
                Effect.objects.create(label="view")
            return HttpResponse()

        def enqueued(request: HttpRequest) -> HttpResponse:
            with transaction.atomic():
                Effect.objects.create(label="view")
                OutboxMessage.objects.enqueue(record.s("view"))
            return HttpResponse()

        def delayed(request: HttpRequest) -> HttpResponse:
            with transaction.atomic():
                Effect.objects.create(label="view")
            record.delay("view")
            return HttpResponse()

        ratios = []
        for _ in range(rounds):
            base, ours, peer = _medians([bare, enqueued, delayed], HttpRequest())
            print(
                f"  view {base * 1e6:,.0f} us   enqueue() adds {(ours - base) * 1e6:,.0f} us   "
                f".delay() adds {(peer - base) * 1e6:,.0f} us"
            )
            ratios.append((ours - base) / (peer - base))
    title = "enqueue() adds to a view, over what .delay() with confirms adds"
    return [Ratio(title, tuple(ratios), at_most=0.5)]


def _medians(views: list[Callable[..., object]], request: object) -> list[float]:
    """Return each view's median seconds; some calls of each in turn."""
    times: list[list[float]] = [[] for _ in views]
    for _ in range(VIEWS // IN_A_ROW):
        for view, taken in zip(views, times, strict=True):
            taken += [seconds(partial(view, request)) for _ in range(IN_A_ROW)]
    return [statistics.median(taken) for taken in times]


def enqueue_insert(rounds: int = 7) -> list[Ratio]:
    """Time transactions with a row of the caller's: alone, with messages, with their bare rows.

    What Celery takes to build the messages is taken off; what is left is over the INSERT.
    """
    with project("rabbitmq"):
        ratios: dict[int, list[float]] = {1: [], MANY: []}
        for count, values in ratios.items():
            for number in range(rounds + 1):
                base, ours, raw, building = _transactions(count)
                if not number:
                    continue  # the first warms up
                print(
                    f"  {count}: transaction {base * 1e6:,.0f} us   enqueue adds "
                    f"{(ours - base) * 1e6:,.0f} us, {building * 1e6:,.0f} of them Celery's   "
                    f"INSERT adds {(raw - base) * 1e6:,.0f} us"
                )
                values.append((ours - base - building) / (raw - base))
    return [
        Ratio(
            "enqueue() adds to a transaction without Celery's part, over one INSERT of its row",
            tuple(ratios[1]),
            at_most=1.5,
        ),
        Ratio(
            f"enqueue_many({MANY}) without Celery's part, over one INSERT of its rows",
            tuple(ratios[MANY]),
            at_most=2,
        ),
    ]


def _transactions(count: int) -> list[float]:
    """Return median seconds: alone, with ``count`` messages, with bare rows; and of the building.

    One transaction of each kind in turn.
    """
    from django.db import connection, transaction

    from outbox.models import OutboxMessage
    from tests.project.models import Effect
    from tests.project.tasks import record

    one_row = f"({', '.join(['%s'] * COLUMNS)})"
    insert = INSERT.format(rows=", ".join([one_row] * count))
    rows, producer = _rows(count), _mute_producer()

    def alone() -> None:
        with transaction.atomic():
            Effect.objects.create(label="row")

    def enqueued() -> None:
        with transaction.atomic():
            Effect.objects.create(label="row")
            if count == 1:
                OutboxMessage.objects.enqueue(record.s("message"))
            else:
                OutboxMessage.objects.enqueue_many([record.s("message") for _ in range(count)])

    def inserted() -> None:
        parameters = next(rows)
        with transaction.atomic():
            Effect.objects.create(label="row")
            with connection.cursor() as cursor:
                cursor.execute(insert, parameters)

    def built() -> None:
        for _ in range(count):
            record.s("message").apply_async(producer=producer, retry=False)

    kinds: list[Callable[[], None]] = [alone, enqueued, inserted, built]
    times: list[list[float]] = [[] for _ in kinds]
    for _ in range(TRANSACTIONS[count]):
        for kind, taken in zip(kinds, times, strict=True):
            taken.append(seconds(kind))
    OutboxMessage.objects.all().delete()
    return [statistics.median(taken) for taken in times]


def _rows(count: int) -> Iterator[list[Any]]:
    """Yield the parameters of as many rows as ``enqueue`` writes, with new ids each time."""
    from django.db import transaction

    from outbox.ids import message_id
    from outbox.models import OutboxMessage
    from outbox.wire import json_dumps
    from tests.project.tasks import record

    with transaction.atomic():
        model = OutboxMessage.objects.enqueue(record.s("message"))
        model.refresh_from_db()
    headers, properties = json_dumps(model.headers), json_dumps(model.properties)
    body = bytes(model.body)
    while True:
        yield [
            value
            for _ in range(count)
            for value in (
                message_id(),
                model.task,
                "pending",
                model.exchange,
                model.routing_key,
                model.queue,
                headers,
                properties,
                body,
                "",
                model.available_at,
                None,
                False,
                0,
                "[]",
                model.created_at,
            )
        ]


def _mute_producer() -> Producer:
    """Return a producer that has Celery and kombu build a message, and sends nothing."""
    from celery import current_app
    from kombu import Producer

    class Mute(Producer):
        def maybe_declare(self, entity: Any, retry: bool = False, **policy: Any) -> bool:
            return False

    app: Any = current_app
    channel: Any = SimpleNamespace(
        connection=SimpleNamespace(client=app.pool.connection),
        is_open=True,
        prepare_message=lambda *parts, **named: parts,
        basic_publish=lambda message, **target: None,
    )
    return Mute(channel, auto_declare=False)

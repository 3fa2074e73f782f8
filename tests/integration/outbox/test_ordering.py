"""Ordering keys with real relays, brokers and workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections, transaction

from outbox.models import OutboxMessage
from tests.helpers import wait_for
from tests.project import tasks
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_project.processes import Process

record_alone: Any = tasks.record_alone
fail_guarded: Any = tasks.fail_guarded
messages = OutboxMessage.objects

pytestmark = pytest.mark.django_db(transaction=True)

KEYS = [f"key {number}" for number in range(6)]
PRODUCERS = 3
EACH = 10  # transactions of a producer, with three messages each


def produce(seed: int) -> None:
    """Commit messages of some keys; the label is what the key's order will be."""
    chance = Random(seed)
    try:
        for _ in range(EACH):
            with transaction.atomic():
                keys = chance.choices(KEYS, k=3)
                messages.enqueue_many(
                    [record_alone.s(f"{key} {seed}", key) for key in keys], ordering_keys=keys
                )
    finally:
        connections.close_all()


def test_two_relays_and_many_workers_execute_a_key_in_order_one_at_a_time(
    start_relay: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    for _ in range(2):
        start_relay()
        start_worker(concurrency=2)
    with ThreadPoolExecutor(PRODUCERS) as pool:
        list(pool.map(produce, range(PRODUCERS)))

    def ended() -> bool:
        return not messages.exclude(status__in=("executed", "failed")).exists()

    wait_for(ended, timeout=60, message=lambda: str(list(messages.values_list("status", "errors"))))
    assert messages.executed().count() == PRODUCERS * EACH * 3, "two of a key at once"
    for key in KEYS:
        rows = messages.filter(ordering_key=key).order_by("sequence")
        executed = Effect.objects.filter(label__startswith=key).order_by("pk")
        assert [row.arguments(["application/json"])[0][0] for row in rows] == [
            effect.label for effect in executed
        ]
        moments = list(rows.values_list("executed_at", flat=True))
        assert moments == sorted(moments)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_final_failure_holds_its_key_and_no_other(
    start_relay: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    start_relay()
    start_worker()
    with transaction.atomic():
        failing, waiting, free = messages.enqueue_many(
            [fail_guarded.s("1"), record_alone.s("2", "k"), record_alone.s("3", "free")],
            ordering_keys=["k", "k", "free"],
        )
    wait_for(lambda: messages.failed().exists() and messages.executed().exists())
    waiting.refresh_from_db()
    assert waiting.blocked
    assert messages.executed().get() == free
    assert messages.filter(pk=failing.pk).discard() == 1
    wait_for(lambda: messages.executed().count() == 2)

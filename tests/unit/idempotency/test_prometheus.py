"""idempotency.contrib.prometheus: each outcome has its count, and nothing counts twice."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import transaction
from django.dispatch import Signal
from prometheus_client import REGISTRY, generate_latest

from idempotency import idempotent, signals
from idempotency.contrib import prometheus
from idempotency.exceptions import KeyReused
from idempotency.execution import Operation
from idempotency.models import IdempotencyKey

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = "tests.prometheus"


@pytest.fixture(autouse=True)
def _connected() -> Iterator[None]:
    prometheus.OPERATIONS.clear()
    prometheus.connect()
    prometheus.connect()
    yield
    prometheus.disconnect()


@idempotent(namespace=NAMESPACE, key="k")
def operation(amount: int) -> int:
    return amount


def counted(outcome: str) -> float | None:
    labels = {"namespace": NAMESPACE, "outcome": outcome}
    return REGISTRY.get_sample_value("idempotency_operations_total", labels)


@pytest.mark.django_db(transaction=True)
def test_each_outcome_is_counted_once() -> None:
    for _ in range(3):
        operation(1)
    with pytest.raises(KeyReused):
        operation(2)
    assert (counted("executed"), counted("replayed"), counted("mismatch")) == (1, 2, 1)


@pytest.mark.django_db(transaction=True)
def test_what_is_rolled_back_is_not_counted() -> None:
    with suppress(LookupError), transaction.atomic():
        operation(1)
        raise LookupError
    assert not counted("executed")


@pytest.mark.parametrize("outcome", prometheus.OUTCOMES)
def test_each_signal_has_its_outcome(outcome: str) -> None:
    told = Operation(NAMESPACE, "", "k", ttl=timedelta(days=1))
    prometheus.OUTCOMES[outcome].send(
        sender=IdempotencyKey, operation=told, message_id="", using="default"
    )
    assert counted(outcome) == 1


def test_no_outcome_is_left_out() -> None:
    told: dict[str, Any] = {**prometheus.IN_TRANSACTION, **prometheus.OUTCOMES}
    assert told == {
        name: signal
        for name, signal in vars(signals).items()
        if isinstance(signal, Signal) and signal is not signals.receipt
    }


@pytest.mark.django_db(transaction=True)
def test_the_key_is_not_shown() -> None:
    @idempotent(namespace=NAMESPACE, key="person@example.com")
    def charge() -> None: ...

    charge()
    assert b"person@example.com" not in generate_latest(REGISTRY)

"""SIGKILL at every step of leased work in real workers, then redelivery."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from idempotency.models import IdempotencyKey
from idempotency.redis import RedisStore
from tests.helpers import wait_for
from tests.integration.idempotency.leases import guarded
from tests.integration.idempotency.leases.leasing import Leasing, State
from tests.project.models import Effect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sample_project.processes import Process
    from tests.servers.brokers import Broker

STEPS = {"leased": ["one", "two", "written"], "redis": ["one", "two"]}


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("kind", ["leased", "redis"])
def test_no_recorded_step_is_repeated_and_it_completes_once(
    kind: str,
    broker: Broker,
    start_worker: Callable[..., Process],
    redis_url: str,
    tmp_path: Path,
) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    points = [point for point in guarded.POINTS if kind == "leased" or point != "inside the fence"]
    labels = {point: f"{point}@{kind}" for point in points}
    task = guarded.killed if kind == "leased" else guarded.killed_redis
    for label in labels.values():
        task.delay(label)
    worker = start_worker(
        f"--include={guarded.__name__}",
        concurrency=len(points),
        env={"TEST_DEATHS": str(deaths), "TEST_REDIS_URL": redis_url},
    )
    store = RedisStore() if kind == "redis" else IdempotencyKey.objects.using("default")
    operations = {
        point: Leasing(store).operation(label, namespace="tests.killed")
        for point, label in labels.items()
    }

    def unfinished() -> list[str]:
        found = {point: store.look_up(operation) for point, operation in operations.items()}
        return [p for p, f in found.items() if f is None or f.record.state != State.COMPLETED]

    wait_for(
        lambda: not unfinished() and len(list(deaths.iterdir())) == len(points),
        timeout=90,
        message=lambda: f"{unfinished()}: {worker.output()}",
    )
    for point, label in labels.items():
        # Equal labels have equal derived keys: a provider would have charged once.
        effects = Counter(Effect.objects.filter(label__startswith=label).values_list("label"))
        told = {row[0].removeprefix(label).split()[0]: count for row, count in effects.items()}
        completed = told.pop("completed", 0)
        interrupted = "one" if point == "inside a step" else None
        assert told == {name: 1 + (name == interrupted) for name in STEPS[kind]}, point
        # Redis and PostgreSQL do not commit together; the replay tells the receivers.
        assert completed == (kind == "leased" or point != "inside the completion"), point
        found = store.look_up(operations[point])
        assert found is not None
        unclaimed = point in ("before the claim", "after the completion")
        settled = kind == "redis" and point == "inside the completion"
        assert found.record.attempt == (1 if unclaimed or settled else 2), point
    # What was completed and not acknowledged succeeds twice: the second time it is a replay.
    wait_for(
        lambda: worker.output().count("succeeded in") == len(points) + 1,
        message=worker.output,
    )
    assert broker.queue_length() == 0

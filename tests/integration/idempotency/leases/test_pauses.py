"""SIGSTOP past the lease, another owner takes over, SIGCONT."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from idempotency.exceptions import KeyInProgress
from tests.helpers import wait_for
from tests.integration.idempotency.leases import guarded
from tests.project.models import Effect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.children import Children


def second() -> str:
    Effect.objects.create(label="second")
    return "second"


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("inside the fence", "leased"),
        ("before the completion", "leased"),
        ("before the completion", "redis"),
        ("before a step", "leased"),
        ("before a step", "redis"),
    ],
)
def test_a_paused_owner_says_lease_lost_and_its_writes_are_rolled_back(
    where: str, kind: str, processes: Children, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    first = processes.start("paused", guarded.__package__ or "", "pause", where, kind, str(go))
    wait_for(lambda: "waiting" in first.output(), message=first.output)
    before = set(Effect.objects.values_list("label", flat=True))
    first.stop_signal()
    taking_over = guarded.paused_work(kind, second)

    def take_over() -> str | None:
        with suppress(KeyInProgress):
            return taking_over()
        return None

    assert wait_for(take_over) == "second"
    go.touch()
    first.cont_signal()
    assert first.wait(30) == 1
    assert "LeaseLost" in first.output()
    assert set(Effect.objects.values_list("label", flat=True)) == {*before, "second"}
    assert taking_over() == "second"
    assert Effect.objects.filter(label="second").count() == 1

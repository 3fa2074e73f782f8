"""Two and four relays at once never publish a row twice, whatever brought the row to be due."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from django.db import transaction

from outbox.models import OutboxMessage
from outbox.relay_querysets import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.system import System

EACH = 500  # rows of each kind


@pytest.mark.parametrize("number", [2, 4])
def test_no_row_is_published_twice(
    system: System, number: int, tell: Callable[[str], None]
) -> None:
    relays = system.start_relays(number, "--batch-size=50")
    # In one transaction, because all relays shall see all rows at one moment.
    with transaction.atomic():
        fresh = system.commit(f"fresh-{n}" for n in range(EACH))
        deferred = system.commit((f"deferred-{n}" for n in range(EACH)), countdown=0.5)
        refused = system.commit(f"refused-{n}" for n in range(EACH))
        OutboxMessage.objects.refuse([Refusal(id, "refused for now") for id in refused])
        dead = system.commit(f"dead-{n}" for n in range(EACH))
        OutboxMessage.objects.refuse([Refusal(id, "dead", permanent=True) for id in dead])
        assert OutboxMessage.objects.dead().retry() == EACH
    system.await_published()

    published = Counter(system.take_message_ids())
    assert set(published) == {*fresh, *deferred, *refused, *dead}
    assert published.total() == 4 * EACH
    batches = [relay.output().count("settled") for relay in relays]
    assert sum(map(bool, batches)) > 1, "void: one relay published everything"
    tell(f"{published.total()} rows published once, batches by relay {batches}")

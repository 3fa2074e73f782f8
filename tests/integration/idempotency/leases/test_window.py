"""Leased work and a delivery that is older than the window, in every state of the key."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from idempotency.exceptions import KeyInProgress, OutcomeUnknown, WindowExpired
from idempotency.leases import run_leased
from idempotency.models import IdempotencyKey
from tests.integration.idempotency.leases.leasing import State

if TYPE_CHECKING:
    from tests.integration.idempotency.leases.leasing import Leasing

pytestmark = pytest.mark.django_db

TTL = timedelta(hours=1)
MOMENT = timedelta(seconds=30)


def deliver(leasing: Leasing, age: timedelta, **terms: Any) -> Any:
    """Run what was published so long ago by the store's clock."""
    operation = leasing.operation(published_at=leasing.store.clock() - age)
    records = IdempotencyKey.objects.using("default")
    return run_leased(
        leasing.store, records, operation, lambda: "done", leasing.terms(**terms)
    ).value


def deliver_late(leasing: Leasing, **terms: Any) -> Any:
    return deliver(leasing, TTL + MOMENT, **terms)


def test_within_the_window_it_is_executed(leasing: Leasing) -> None:
    assert deliver(leasing, TTL - MOMENT) == "done"


def test_an_absent_key_is_not_taken(leasing: Leasing) -> None:
    with pytest.raises(WindowExpired, match="was not executed"):
        deliver_late(leasing)
    assert leasing.found() is None


def test_an_expired_key_is_not_taken(leasing: Leasing) -> None:
    leasing.run()
    leasing.pass_time(TTL + MOMENT)
    with pytest.raises(WindowExpired):
        deliver_late(leasing)


def test_a_completed_key_is_replayed(leasing: Leasing) -> None:
    leasing.run(lambda: "first")
    assert deliver_late(leasing) == "first"


def test_a_completed_key_is_not_executed_again(leasing: Leasing) -> None:
    leasing.run(lambda: "first")
    with pytest.raises(WindowExpired):
        deliver_late(leasing, on_completed="execute")
    assert leasing.record().state == State.COMPLETED


def test_a_failed_key_is_not_taken(leasing: Leasing) -> None:
    token = leasing.claim()
    leasing.store.settle(leasing.operation(), token, State.FAILED_RETRYABLE)
    with pytest.raises(WindowExpired):
        deliver_late(leasing)
    assert leasing.record().attempt == 1


def test_a_stale_lease_is_not_taken_over(leasing: Leasing) -> None:
    token = leasing.claim()
    leasing.make_stale()
    with pytest.raises(WindowExpired):
        deliver_late(leasing)
    assert leasing.record().token == token


def test_a_stale_lease_that_blocks_is_unknown(leasing: Leasing) -> None:
    leasing.claim(on_stale="block")
    leasing.make_stale()
    with pytest.raises(OutcomeUnknown):
        deliver_late(leasing, on_stale="block")


def test_a_live_lease_is_in_progress(leasing: Leasing) -> None:
    leasing.claim()
    with pytest.raises(KeyInProgress):
        deliver_late(leasing)

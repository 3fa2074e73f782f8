"""What every store of leases promises, whichever it is."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.integration.idempotency.leases.leasing import State

if TYPE_CHECKING:
    from tests.integration.idempotency.leases.leasing import Leasing

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)


def test_a_claim_is_written_whole(leasing: Leasing) -> None:
    token = leasing.claim()
    found = leasing.found()
    assert found is not None
    record = found.record
    assert (record.namespace, record.scope, record.key) == ("tests", "", "k")
    assert (record.state, record.attempt, record.token) == (State.IN_PROGRESS, 1, token)
    assert (record.fingerprint, record.message_id, record.owner) == ("f", "m", "owner")
    assert (record.error, record.result, record.checkpoint) == ("", None, None)
    assert record.finished_at is None
    assert record.lease_expires_at is not None
    assert record.expires_at is not None
    assert record.lease_expires_at - record.created_at == timedelta(seconds=30)
    assert record.expires_at - record.lease_expires_at == timedelta(hours=1)
    assert timedelta(seconds=25) < found.remaining <= timedelta(seconds=30)


def test_a_blocking_claim_never_expires(leasing: Leasing) -> None:
    leasing.claim(on_stale="block")
    leasing.pass_time(timedelta(days=1000))
    found = leasing.found()
    assert found is not None
    assert found.record.expires_at is None
    assert found.remaining < timedelta(0)


def test_an_absent_key_is_not_found(leasing: Leasing) -> None:
    assert leasing.found() is None


def test_an_expired_key_is_not_found(leasing: Leasing) -> None:
    token = leasing.claim()
    leasing.store.settle(leasing.operation(), token, State.COMPLETED, result=b"r")
    leasing.pass_time(timedelta(hours=1))
    assert leasing.found() is None


def test_keys_namespaces_and_scopes_are_kept_apart(leasing: Leasing) -> None:
    leasing.claim()
    assert leasing.found("other") is None


def test_extending_moves_the_lease_and_the_expiry(leasing: Leasing) -> None:
    token = leasing.claim()
    leasing.pass_time(MINUTE)
    assert leasing.store.extend(leasing.operation(), token, timedelta(seconds=90))
    found = leasing.found()
    assert found is not None
    assert found.remaining > timedelta(seconds=80)
    record = found.record
    assert record.expires_at is not None
    assert record.lease_expires_at is not None
    assert record.expires_at - record.lease_expires_at == timedelta(hours=1)
    assert record.checkpoint is None


def test_extending_records_the_steps_and_keeps_them(leasing: Leasing) -> None:
    token = leasing.claim()
    assert leasing.store.extend(leasing.operation(), token, MINUTE, b"steps\x00\xff")
    assert leasing.store.extend(leasing.operation(), token, MINUTE)
    assert bytes(leasing.record().checkpoint or b"") == b"steps\x00\xff"


def test_completing_ends_the_lease(leasing: Leasing) -> None:
    token = leasing.claim()
    leasing.store.extend(leasing.operation(), token, MINUTE, b"steps")
    written = leasing.store.settle(
        leasing.operation(), token, State.COMPLETED, result=b"result\x00\xff"
    )
    assert written is not None
    for record in (written, leasing.record()):
        assert record.state == State.COMPLETED
        assert bytes(record.result or b"") == b"result\x00\xff"
        assert record.lease_expires_at is None
        assert record.checkpoint is None
        assert record.finished_at is not None
        assert record.expires_at is not None
        assert record.expires_at - record.finished_at == timedelta(hours=1)


@pytest.mark.parametrize("state", [State.FAILED_RETRYABLE, State.FAILED_TERMINAL])
def test_failing_keeps_the_steps_and_the_error(leasing: Leasing, state: str) -> None:
    token = leasing.claim()
    leasing.store.extend(leasing.operation(), token, MINUTE, b"steps")
    assert leasing.store.settle(leasing.operation(), token, state, error="why") is not None
    record = leasing.record()
    assert (record.state, record.error) == (state, "why")
    assert bytes(record.checkpoint or b"") == b"steps"
    assert record.expires_at is not None


def test_an_unknown_outcome_never_expires(leasing: Leasing) -> None:
    token = leasing.claim()
    assert leasing.store.settle(leasing.operation(), token, State.OUTCOME_UNKNOWN, error="why")
    leasing.pass_time(timedelta(days=1000))
    record = leasing.record()
    assert record.state == State.OUTCOME_UNKNOWN
    assert record.expires_at is None


def test_only_a_stale_attempt_is_ended_by_another(leasing: Leasing) -> None:
    token = leasing.claim()
    end = (leasing.operation(), token, State.OUTCOME_UNKNOWN)
    assert leasing.store.settle(*end, only_stale=True) is None
    leasing.make_stale()
    assert leasing.store.settle(*end, only_stale=True) is not None


def test_a_wrong_token_changes_nothing(leasing: Leasing) -> None:
    leasing.claim()
    before = vars(leasing.record())
    store, operation, wrong = leasing.store, leasing.operation(), uuid4()
    assert not store.extend(operation, wrong, MINUTE, b"steps")
    assert store.settle(operation, wrong, State.COMPLETED, result=b"r") is None
    assert store.settle(operation, wrong, State.FAILED_TERMINAL, error="e") is None
    assert not store.let_go(operation, wrong)
    after = vars(leasing.record())
    del before["_state"], after["_state"]
    assert after == before


def test_the_right_token_changes_nothing_once_settled(leasing: Leasing) -> None:
    token = leasing.claim()
    store, operation = leasing.store, leasing.operation()
    store.settle(operation, token, State.COMPLETED, result=b"r")
    before = vars(leasing.record())
    assert not store.extend(operation, token, MINUTE, b"steps")
    assert store.settle(operation, token, State.FAILED_TERMINAL, error="e") is None
    assert not store.let_go(operation, token)
    after = vars(leasing.record())
    del before["_state"], after["_state"]
    assert after == before


def test_a_fingerprint_that_was_never_taken_fits_any(leasing: Leasing) -> None:
    token = leasing.claim()
    leasing.store.settle(leasing.operation(), token, State.FAILED_RETRYABLE)
    operation = leasing.operation(fingerprint="")
    assert leasing.store.claim_lease(operation, leasing.terms(), uuid4(), "owner") is not None

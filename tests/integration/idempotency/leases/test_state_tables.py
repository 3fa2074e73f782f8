"""Each row of the table of states in leased mode, in both stores."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from idempotency import results
from idempotency.exceptions import (
    KeyInProgress,
    KeyReused,
    LeaseLost,
    OutcomeUnknown,
    StoredFailure,
)
from idempotency.leases import step
from idempotency.redis import RedisStore
from tests.integration.idempotency.leases.leasing import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.idempotency.leases.leasing import Leasing

pytestmark = pytest.mark.django_db

ENDED = [State.COMPLETED, State.FAILED_RETRYABLE, State.FAILED_TERMINAL]


def never() -> None:
    raise AssertionError("executed")


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def settle(leasing: Leasing, state: str, **options: Any) -> None:
    token = leasing.claim()
    result = results.dumps("stored") if state == State.COMPLETED else None
    assert leasing.store.settle(leasing.operation(), token, state, result=result, **options)


def resolve(leasing: Leasing, **how: Any) -> int:
    if isinstance(leasing.store, RedisStore):
        return int(leasing.store.resolve(leasing.operation(), **how))
    return int(leasing.store.all().resolve(**how))  # type: ignore[attr-defined]


def release(leasing: Leasing) -> int:
    if isinstance(leasing.store, RedisStore):
        return int(leasing.store.release(leasing.operation()))
    return int(leasing.store.all().release())  # type: ignore[attr-defined]


def test_absent_claim_executes(leasing: Leasing) -> None:
    seen = []

    def body() -> str:
        seen.append(leasing.record())
        return "value"

    outcome = leasing.run(body)
    [during] = seen
    assert (outcome.value, outcome.replayed) == ("value", False)
    assert (during.state, during.attempt) == (State.IN_PROGRESS, 1)
    assert leasing.record().state == State.COMPLETED


@pytest.mark.parametrize("state", ENDED)
def test_expired_claim_executes_as_the_first(leasing: Leasing, state: str) -> None:
    settle(leasing, state)
    leasing.pass_time(timedelta(hours=1, seconds=31))
    seen = []
    outcome = leasing.run(lambda: seen.append(leasing.record()), fingerprint="other")
    [during] = seen
    assert not outcome.replayed
    assert (during.attempt, during.fingerprint, during.checkpoint) == (1, "other", None)


def test_expired_stale_claim_starts_from_nothing(leasing: Leasing) -> None:
    token = leasing.claim()
    steps = results.dumps({"one": results.dumps(1)})
    leasing.store.extend(leasing.operation(), token, timedelta(seconds=30), steps)
    leasing.pass_time(timedelta(hours=1, seconds=31))
    assert leasing.run(lambda: step("one", lambda: 2)).value == 2


def test_in_progress_claim_with_another_fingerprint_is_a_mismatch(leasing: Leasing) -> None:
    """Checked before "in progress": waiting can never help."""
    leasing.claim()
    with pytest.raises(KeyReused):
        leasing.run(never, fingerprint="other")


def test_in_progress_live_claim_is_in_progress(leasing: Leasing) -> None:
    leasing.claim()
    with pytest.raises(KeyInProgress) as caught:
        leasing.run(never)
    assert 25 < caught.value.retry_after <= 30


def test_in_progress_live_claim_waits_and_reevaluates(leasing: Leasing) -> None:
    leasing.claim(lease=timedelta(milliseconds=300))
    assert leasing.run(wait=timedelta(seconds=20)).value == "done"
    assert leasing.record().attempt == 2


def test_stale_claim_is_reclaimed_and_goes_on_after_its_steps(leasing: Leasing) -> None:
    old = leasing.claim()
    steps = results.dumps({"one": results.dumps("recorded")})
    leasing.store.extend(leasing.operation(), old, timedelta(seconds=30), steps)
    leasing.make_stale()
    seen = []

    def body() -> Any:
        seen.append(leasing.record())
        return step("one", never)

    assert leasing.run(body).value == "recorded"
    [during] = seen
    assert (during.state, during.attempt) == (State.IN_PROGRESS, 2)
    assert during.token != old


def test_stale_claim_under_block_is_indeterminate(leasing: Leasing) -> None:
    leasing.claim()
    leasing.make_stale()
    with pytest.raises(OutcomeUnknown, match="owner"):
        leasing.run(never, on_stale="block")
    assert leasing.record().state == State.OUTCOME_UNKNOWN


def test_stale_claim_after_max_attempts_fails_for_good(leasing: Leasing) -> None:
    leasing.claim()
    leasing.make_stale()
    leasing.claim()
    leasing.make_stale()
    with pytest.raises(StoredFailure, match="ended in attempt 2"):
        leasing.run(never, max_attempts=2)
    assert leasing.record().state == State.FAILED_TERMINAL


def test_completed_claim_replays(leasing: Leasing) -> None:
    settle(leasing, State.COMPLETED)
    outcome = leasing.run(never)
    assert (outcome.value, outcome.replayed) == ("stored", True)


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}, (1, "2")])
def test_completed_claim_replays_the_value_and_its_type(leasing: Leasing, value: Any) -> None:
    leasing.run(lambda: value)
    replayed = leasing.run(never)
    assert replayed.replayed
    assert (type(replayed.value), replayed.value) == (type(value), value)


@pytest.mark.parametrize("state", [*ENDED, State.OUTCOME_UNKNOWN])
def test_ended_claim_with_another_fingerprint_is_a_mismatch(leasing: Leasing, state: str) -> None:
    settle(leasing, state)
    with pytest.raises(KeyReused):
        leasing.run(never, fingerprint="other")


def test_completed_claim_executes_if_the_terms_say_so(leasing: Leasing) -> None:
    settle(leasing, State.COMPLETED)
    assert not leasing.run(on_completed="execute").replayed
    assert leasing.record().attempt == 1


def test_completed_claim_raises_if_the_terms_say_so(leasing: Leasing) -> None:
    settle(leasing, State.COMPLETED)
    with pytest.raises(KeyReused, match="executed before"):
        leasing.run(never, on_completed="raise")


def test_failed_retryable_claim_executes(leasing: Leasing) -> None:
    settle(leasing, State.FAILED_RETRYABLE, error="why")
    seen = []
    leasing.run(lambda: seen.append(leasing.record()))
    [during] = seen
    assert (during.attempt, during.error) == (2, "")


def test_failed_terminal_claim_replays_the_failure(leasing: Leasing) -> None:
    settle(leasing, State.FAILED_TERMINAL, error="builtins.ValueError: why")
    with pytest.raises(StoredFailure, match="ValueError: why"):
        leasing.run(never)


@pytest.mark.parametrize(
    ("how", "state"),
    [
        ({"completed": None}, State.COMPLETED),
        ({"failed": ValueError("why")}, State.FAILED_TERMINAL),
        ({"retry": True}, State.FAILED_RETRYABLE),
    ],
)
def test_outcome_unknown_claim_is_indeterminate_until_resolved(
    leasing: Leasing, how: dict[str, Any], state: str
) -> None:
    settle(leasing, State.OUTCOME_UNKNOWN, error="why")
    for _ in range(2):
        with pytest.raises(OutcomeUnknown, match="resolve"):
            leasing.run(never)
    assert resolve(leasing, **how) == 1
    assert leasing.record().state == state
    if state == State.COMPLETED:
        assert leasing.run(never).value is None
    elif state == State.FAILED_TERMINAL:
        with pytest.raises(StoredFailure, match="ValueError: why"):
            leasing.run(never)
    else:
        assert leasing.run().value == "done"


def test_a_live_lease_is_not_resolved_or_released(leasing: Leasing) -> None:
    leasing.claim()
    assert resolve(leasing, retry=True) == 0
    assert release(leasing) == 0
    leasing.make_stale()
    assert resolve(leasing, completed=7) == 1
    assert leasing.run(never).value == 7


def test_failed_terminal_is_released(leasing: Leasing) -> None:
    settle(leasing, State.FAILED_TERMINAL)
    assert release(leasing) == 1
    assert leasing.run().value == "done"


def test_in_progress_complete_is_completed(leasing: Leasing) -> None:
    leasing.run()
    record = leasing.record()
    assert record.state == State.COMPLETED
    assert record.finished_at is not None
    assert record.expires_at == record.finished_at + timedelta(hours=1)


def test_in_progress_fail_is_failed_retryable(leasing: Leasing) -> None:
    with pytest.raises(ValueError, match="why"):
        leasing.run(failing(ValueError("why")))
    record = leasing.record()
    assert (record.state, record.error) == (State.FAILED_RETRYABLE, "builtins.ValueError: why")


def test_in_progress_fail_is_failed_terminal_if_the_terms_say_so(leasing: Leasing) -> None:
    with pytest.raises(ValueError, match="why"):
        leasing.run(failing(ValueError("why")), on_failed="raise")
    assert leasing.record().state == State.FAILED_TERMINAL


def test_in_progress_fail_in_the_last_attempt_is_failed_terminal(leasing: Leasing) -> None:
    for state in (State.FAILED_RETRYABLE, State.FAILED_TERMINAL):
        with pytest.raises(ValueError, match="why"):
            leasing.run(failing(ValueError("why")), max_attempts=2)
        assert leasing.record().state == state


def test_in_progress_release_leaves_nothing_of_a_first_attempt(leasing: Leasing) -> None:
    with pytest.raises(KeyboardInterrupt):
        leasing.run(failing(KeyboardInterrupt()))
    assert leasing.found() is None


def test_in_progress_release_keeps_the_steps(leasing: Leasing) -> None:
    def body() -> None:
        step("one", lambda: 1)
        raise SystemExit

    with pytest.raises(SystemExit):
        leasing.run(body)
    record = leasing.record()
    assert (record.state, record.error) == (State.FAILED_RETRYABLE, "")
    assert leasing.run(lambda: step("one", never)).value == 1


def take_over(leasing: Leasing) -> None:
    leasing.make_stale()
    leasing.claim()


def be_settled_by_hand(leasing: Leasing) -> None:
    leasing.make_stale()
    resolve(leasing, failed=ValueError("by hand"))


@pytest.mark.parametrize("event", [take_over, be_settled_by_hand])
def test_any_complete_without_the_token_or_not_in_progress_is_lease_lost(
    leasing: Leasing, event: Callable[[Leasing], None]
) -> None:
    with pytest.raises(LeaseLost):
        leasing.run(lambda: event(leasing))
    assert leasing.record().state in (State.IN_PROGRESS, State.FAILED_TERMINAL)


@pytest.mark.parametrize("event", [take_over, be_settled_by_hand])
def test_any_fail_without_the_token_or_not_in_progress_changes_nothing(
    leasing: Leasing, event: Callable[[Leasing], None]
) -> None:
    def body() -> None:
        event(leasing)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        leasing.run(body)
    assert "taken over" in caught.value.__notes__[0]
    assert "mine" not in leasing.record().error


@pytest.mark.parametrize("event", [take_over, be_settled_by_hand])
def test_any_step_without_the_token_or_not_in_progress_is_lease_lost(
    leasing: Leasing, event: Callable[[Leasing], None]
) -> None:
    with pytest.raises(LeaseLost):
        leasing.run(lambda: step("one", lambda: event(leasing)))
    assert leasing.record().checkpoint is None


def test_stale_complete_that_nobody_reclaimed_is_allowed(leasing: Leasing) -> None:
    """The token is the authority, not the clock."""
    assert leasing.run(leasing.make_stale).value is None
    assert leasing.record().state == State.COMPLETED


def test_in_progress_of_a_dead_owner_becomes_stale_by_time(leasing: Leasing) -> None:
    leasing.claim()
    assert leasing.store.claim_lease(leasing.operation(), leasing.terms(), uuid4(), "x") is None
    leasing.make_stale()
    assert leasing.store.claim_lease(leasing.operation(), leasing.terms(), uuid4(), "x")

"""The counters: each outcome of an operation sends its signal, once, and the logs keep the key."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from django.dispatch import Signal
from django.utils import timezone

from idempotency import idempotent, signals
from idempotency.exceptions import KeyInProgress, KeyReused, LeaseLost, OutcomeUnknown
from idempotency.keys import lock_number
from idempotency.models import IdempotencyKey
from tests.project.models import Effect
from tests.sessions import another_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
pytestmark = [pytest.mark.django_db, pytest.mark.database]

NAMES = {
    name: signal
    for name, signal in vars(signals).items()
    if isinstance(signal, Signal) and signal is not signals.receipt  # no outcome
}
KEY = "charge:person@example.com"
NAMESPACE = "tests.signals"
MODES = pytest.mark.parametrize("mode", ["atomic", "leased"])
keys = IdempotencyKey.objects


@pytest.fixture
def counted() -> Iterator[Counter[str]]:
    """Signals that were sent, by their names."""
    counter: Counter[str] = Counter()
    receivers = {}
    for name, signal in NAMES.items():

        def receiver(*, sender: Any, name: str = name, **kwargs: Any) -> None:
            assert sender is IdempotencyKey
            assert kwargs["using"] == "default"
            assert kwargs["message_id"] == ""
            told = kwargs.get("record") or kwargs["operation"]
            assert (told.namespace, told.scope, told.key) == (NAMESPACE, "", KEY)
            counter[name] += 1

        receivers[name] = receiver
        signal.connect(receiver)
    yield counter
    for name, receiver in receivers.items():
        NAMES[name].disconnect(receiver)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged names the namespace and a digest's prefix, never the key."""
    caplog.set_level("INFO")
    yield caplog
    assert KEY not in caplog.text
    for record in caplog.records:
        if record.name.startswith("idempotency"):
            assert "tests.signals idk1:" in record.getMessage()


def guarded(
    mode: Any, body: Callable[[], Any] = lambda: None, **options: Any
) -> Callable[[int], Any]:
    @idempotent(namespace=NAMESPACE, key=KEY, mode=mode, **options)
    def function(amount: int) -> Any:
        Effect.objects.create(label=str(amount))
        return body()

    return function


def claim_for_another(*, stale: bool = False) -> None:
    """Have somebody hold the key who is never heard of again."""
    now = timezone.now()
    keys.create(
        namespace=NAMESPACE,
        key=KEY,
        state="in_progress",
        token=uuid4(),
        owner="another",
        lease_expires_at=now + timedelta(minutes=-1 if stale else 1),
        created_at=now,
        expires_at=now + timedelta(days=1),
    )


@contextmanager
def twin_executing() -> Iterator[None]:
    """Somebody else has the lock of the key."""
    with another_session() as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [lock_number(NAMESPACE, "", KEY)])
        yield


@MODES
def test_executed_and_replayed(mode: str, counted: Counter[str]) -> None:
    guarded(mode)(1)
    assert counted == {"executed": 1}
    guarded(mode)(1)
    assert counted == {"executed": 1, "replayed": 1}


@MODES
def test_mismatch(mode: str, counted: Counter[str], logged: pytest.LogCaptureFixture) -> None:
    guarded(mode)(1)
    with pytest.raises(KeyReused):
        guarded(mode)(2)
    assert counted == {"executed": 1, "mismatch": 1}
    assert "ends with KeyReused" in logged.text


@MODES
def test_mismatch_with_a_guard_that_takes_no_duplicates(mode: str, counted: Counter[str]) -> None:
    guarded(mode)(1)
    with pytest.raises(KeyReused):
        guarded(mode, on_completed="raise")(1)
    assert counted == {"executed": 1, "mismatch": 1}


def test_in_progress_in_atomic_mode(counted: Counter[str]) -> None:
    with twin_executing(), pytest.raises(KeyInProgress):
        guarded("atomic")(1)
    assert counted == {"in_progress": 1}


def test_in_progress_in_leased_mode(counted: Counter[str]) -> None:
    claim_for_another()
    with pytest.raises(KeyInProgress):
        guarded("leased")(1)
    assert counted == {"in_progress": 1}


def test_reclaimed(counted: Counter[str], logged: pytest.LogCaptureFixture) -> None:
    claim_for_another(stale=True)
    guarded("leased")(1)
    assert counted == {"reclaimed": 1, "executed": 1}
    assert "is reclaimed" in logged.text


def test_unknown(counted: Counter[str]) -> None:
    claim_for_another(stale=True)
    with pytest.raises(OutcomeUnknown):
        guarded("leased", on_stale="block")(1)
    assert counted == {"unknown": 1}


def test_unknown_is_what_atomic_mode_meets_too(counted: Counter[str]) -> None:
    claim_for_another(stale=True)
    with pytest.raises(OutcomeUnknown):
        guarded("leased", on_stale="block")(1)
    with pytest.raises(OutcomeUnknown):
        guarded("atomic")(1)
    assert counted == {"unknown": 2}


def test_fenced_out(counted: Counter[str]) -> None:
    def lose() -> None:
        keys.update(token=uuid4())

    with pytest.raises(LeaseLost):
        guarded("leased", lose)(1)
    assert counted == {"fenced_out": 1}


def test_a_signal_of_each_outcome_is_tested_here() -> None:
    assert set(NAMES) == {
        "executed",
        "replayed",
        "in_progress",
        "mismatch",
        "reclaimed",
        "fenced_out",
        "unknown",
        "window_expired",  # in test_window.py
    }

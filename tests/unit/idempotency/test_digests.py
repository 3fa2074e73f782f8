"""Keys and fingerprints under a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest

from idempotency import idempotent, make_key
from idempotency.digests import fingerprint
from idempotency.exceptions import KeyReused
from idempotency.models import IdempotencyKey

PAYLOAD = {"card": "4242", "tags": {"b", "a"}}
KEY = "idk1:65c4b7d27c71683a60a5de67bd316a35d5d22552670c9a6ff4dd028eec817433"
FINGERPRINT = "72a432d88c959a2dd57a829a498f1d3733f3662cb1c66eff3cd61c7c5b372603"

PROGRAM = """
import sys
from decimal import Decimal
from django.conf import settings
settings.configure(IDEMPOTENCY_SECRET=sys.argv[1])
from idempotency import make_key
from idempotency.digests import fingerprint
print(make_key("payments.charge", order_id=42, amount=Decimal("10.50"), currency="EUR"))
print(fingerprint({"card": "4242", "tags": {"b", "a"}}))
"""


def charge_key() -> str:
    return make_key("payments.charge", order_id=42, amount=Decimal("10.50"), currency="EUR")


def test_golden_with_a_secret(settings: Any) -> None:
    """Stored keys and fingerprints are compared with these for ever."""
    settings.IDEMPOTENCY_SECRET = "a secret"
    assert charge_key() == KEY
    assert fingerprint(PAYLOAD) == FINGERPRINT


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_other_processes_with_the_secret_make_the_same(seed: str) -> None:
    made = subprocess.run(
        [sys.executable, "-c", PROGRAM, "a secret"],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.split() == [KEY, FINGERPRINT]


def test_each_secret_makes_another_key_and_fingerprint(settings: Any) -> None:
    made = set()
    for secret in ("", "a secret", "another"):
        settings.IDEMPOTENCY_SECRET = secret
        made |= {charge_key(), fingerprint(PAYLOAD)}
    assert len(made) == 6


@pytest.mark.django_db
def test_what_a_guard_stores_is_made_with_the_secret(settings: Any) -> None:
    guarding = idempotent(namespace="tests", key="{order_id}")
    guarded = guarding(lambda order_id, amount: amount)
    settings.IDEMPOTENCY_SECRET = "a secret"
    guarded(1, 5)
    stored = IdempotencyKey.objects.get().fingerprint
    assert stored == fingerprint({"order_id": 1, "amount": 5})
    assert guarded(1, 5) == 5
    with pytest.raises(KeyReused):
        guarded(1, 6)
    settings.IDEMPOTENCY_SECRET = ""
    assert stored != fingerprint({"order_id": 1, "amount": 5})

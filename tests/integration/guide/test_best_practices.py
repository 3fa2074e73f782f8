"""docs/guide/best-practices.md"""

from __future__ import annotations

import logging
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from idempotency.exceptions import KeyReused
from idempotency.models import IdempotencyKey
from idempotency.tasks import purge
from sample_project.guide import duplicates
from sample_project.guide.models import Credit
from sample_project.guide.tasks import give_credit

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _count() -> None:
    duplicates.count.clear()


def test_duplicates_are_counted_by_what_became_of_them() -> None:
    credit = uuid4()
    for _ in range(3):
        give_credit(credit, "ada", Decimal(1))
    with pytest.raises(KeyReused):
        give_credit(credit, "ada", Decimal(2))
    assert duplicates.count == {("replayed", "guide.credit"): 2, ("mismatch", "guide.credit"): 1}


def test_no_key_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    credit = uuid4()
    with caplog.at_level(logging.DEBUG):
        for _ in range(2):
            give_credit(credit, "ada", Decimal(1))
    assert "A duplicate in guide.credit: replayed" in caplog.text
    assert str(credit) not in "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("sample_project")
    )


def test_a_key_outlives_what_can_still_be_delivered() -> None:
    from sample_project import settings as sample

    options: dict[str, Any] = sample.CELERY_BROKER_TRANSPORT_OPTIONS
    slowest = timedelta(seconds=options.get("visibility_timeout", 0))
    assert slowest < sample.IDEMPOTENCY_TTL


def test_an_expired_key_is_purged_and_a_live_one_is_not() -> None:
    old, new = uuid4(), uuid4()
    for credit in (old, new):
        give_credit(credit, "ada", Decimal(1))
    yesterday = timezone.now() - timedelta(days=1)
    IdempotencyKey.objects.filter(key=str(old)).update(expires_at=yesterday)
    assert purge() == 1
    give_credit(new, "ada", Decimal(1))
    assert Credit.objects.count() == 2

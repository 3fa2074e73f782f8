"""Fixtures for projects that test with pytest and pytest-django; installed with the package.

``idempotency.testing`` documents what they give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

# Nothing of Django at the top: pytest loads this before there are settings.


@pytest.fixture
def assert_exactly_once(transactional_db: None) -> Callable[..., Any]:
    """``idempotency.testing.assert_exactly_once``, in a test that commits."""
    from idempotency.testing import assert_exactly_once

    return assert_exactly_once


@pytest.fixture
def idempotency_off() -> Iterator[None]:
    """Have no guard recognise a duplicate in this test: ``override_idempotency(enabled=False)``."""
    from idempotency.testing import override_idempotency

    with override_idempotency(enabled=False):
        yield


@pytest.fixture
def travel() -> Callable[[float | timedelta], None]:
    """``idempotency.testing.travel``: let time pass for what the database remembers."""
    from idempotency.testing import travel

    return travel

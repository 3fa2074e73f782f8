"""Fixtures for projects that test with pytest; installed with the package.

``outbox.testing`` documents what they give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from outbox.models import OutboxMessage

# Nothing of Django at the top: pytest loads this before there are settings.


@pytest.fixture
def drain_outbox() -> Callable[..., int]:
    """``outbox.testing.drain_outbox``: run every pending message in this process."""
    from outbox.testing import drain_outbox

    return drain_outbox


@pytest.fixture
def assert_enqueued() -> Callable[..., OutboxMessage]:
    """``outbox.testing.assert_enqueued``: find a message, or fail and say what there is."""
    from outbox.testing import assert_enqueued

    return assert_enqueued

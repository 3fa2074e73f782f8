"""For the tests of projects that use idempotency: prove that *your* operation runs exactly once.

The fixtures of the same names are in ``idempotency.pytest_plugin``, which pytest finds by itself.
"""

from idempotency.testing.clock import travel
from idempotency.testing.exactly_once import assert_exactly_once
from idempotency.testing.unguarded import override_idempotency

__all__ = ["assert_exactly_once", "override_idempotency", "travel"]

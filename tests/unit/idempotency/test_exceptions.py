"""The family of exceptions."""

from __future__ import annotations

import pickle

import pytest

from idempotency import exceptions
from idempotency.exceptions import IdempotencyError, ImproperlyUsed, KeyInProgress, ReentrantUse

NAMES = [
    "KeyMissing",
    "KeyInProgress",
    "StoreUnavailable",
    "KeyReused",
    "LeaseLost",
    "OutcomeUnknown",
    "StoredFailure",
    "ResultUnavailable",
    "WindowExpired",
    "ImproperlyUsed",
    "ReentrantUse",
]


@pytest.mark.parametrize("name", NAMES)
def test_all_are_one_family_with_docstrings(name: str) -> None:
    error = getattr(exceptions, name)
    assert issubclass(error, IdempotencyError)
    assert error.__doc__


def test_a_reentrant_use_is_an_improper_use() -> None:
    assert issubclass(ReentrantUse, ImproperlyUsed)


def test_errors_survive_pickling() -> None:
    """A prefork pool sends them from the child to the parent."""
    error = pickle.loads(pickle.dumps(KeyInProgress("k", retry_after=7)))  # noqa: S301
    assert (str(error), error.retry_after) == ("k", 7)

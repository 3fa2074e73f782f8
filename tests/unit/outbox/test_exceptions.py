"""What callers may catch."""

from __future__ import annotations

import inspect

from outbox import exceptions


def test_one_base_catches_them_all() -> None:
    found = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass)]
    assert len(found) == 6
    assert all(issubclass(kind, exceptions.OutboxError) for kind in found)


def test_an_unserializable_argument_is_the_type_error_that_celery_raises() -> None:
    assert issubclass(exceptions.UnserializableArgument, TypeError)

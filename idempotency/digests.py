"""Keys and fingerprints as this project makes them: with its secret, where it has one."""

from __future__ import annotations

import os
from typing import Any

from django.conf import ENVIRONMENT_VARIABLE, settings

from idempotency import keys
from idempotency.conf import conf


def make_key(namespace: str, *args: Any, scope: str = "", **kwargs: Any) -> str:
    """Return ``"idk1:"`` and a SHA-256 of the values, stable across processes and versions.

    With ``IDEMPOTENCY_SECRET`` it is an HMAC-SHA-256, which nobody can guess the values from.

    Numbers count by value (``1 == 1.0 == Decimal("1.00")``), text in NFC, lists as tuples, aware
    datetimes as instants, a model instance as its label and primary key, an object with
    ``__idempotency_key__()`` as what that returns. Types are kept apart: ``1``, ``"1"`` and
    ``True`` differ.

    Raises ``KeyMissing`` without any value, ``TypeError`` for a value of an unknown type and
    ``ValueError`` for one that equals nothing for certain (NaN, a naive datetime, an unsaved
    instance, a lone surrogate, a cycle); both name the value's path.
    """
    return keys.make_key(namespace, args, kwargs, scope=scope, secret=_secret())


def fingerprint(payload: Any) -> str:
    """Return a SHA-256 in hex that tells one payload from another; with the secret, an HMAC.

    Like a key, but values that have only one form are taken as they are: a naive datetime, NaN,
    a dictionary with keys that are not text. Raises like ``make_key``.
    """
    return keys.fingerprint(payload, secret=_secret())


def _secret() -> str:
    if not settings.configured and ENVIRONMENT_VARIABLE not in os.environ:
        return ""  # a program without Django has none
    secret: str = conf.SECRET
    return secret

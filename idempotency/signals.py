"""Sent inside the transaction of a guarded operation: what a receiver writes commits with it.

Both are sent with ``sender=IdempotencyKey``, ``record`` (the ``IdempotencyKey`` as stored),
``message_id`` (the id of the Celery request whose guard this is, ``""`` where there is none) and
``using`` (the database alias). An exception of a receiver rolls the operation back.
"""

from __future__ import annotations

from django.dispatch import Signal

executed = Signal()
"""The operation ran, and its key and result are written."""

replayed = Signal()
"""The operation had run before, and its stored result is returned."""

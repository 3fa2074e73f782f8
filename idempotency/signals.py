"""What becomes of guarded operations.

``executed`` and ``replayed`` are sent inside the operation's transaction (in leased mode that of
its completion): what a receiver writes commits with it, and an exception of a receiver rolls it
back. Their arguments are ``sender=IdempotencyKey``, ``record`` (the ``IdempotencyKey`` as stored),
``message_id`` (the id of the Celery request whose guard this is, ``""`` where there is none) and
``using`` (the database alias).

``receipt`` is sent before each of them, with ``message_id`` and ``using``. A receiver returns a
list of statements (SQL with ``%s``, and its parameters) or None; they travel with the operation's
own, and each sees what has committed before it begins.

The others are for counting. They are sent robustly, with the same arguments but ``operation``
(its ``namespace``, ``scope`` and ``key``) instead of ``record``.
"""

from __future__ import annotations

from django.dispatch import Signal

executed = Signal()
"""The operation ran, and its key and result are written."""

replayed = Signal()
"""The operation had run before, and its stored result is returned."""

receipt = Signal()
"""The operation is being finished, or has been before: what else is to be written with it?"""

reclaimed = Signal()
"""A lease was stale, and this claim has taken it over."""

in_progress = Signal()
"""A duplicate met the execution itself: it has to come again."""

mismatch = Signal()
"""The key was given with other arguments, or to a guard that takes no duplicates."""

fenced_out = Signal()
"""An owner had lost its lease; what it wrote is rolled back."""

unknown = Signal()
"""A duplicate met an operation whose outcome is unknown."""

window_expired = Signal()
"""A delivery was older than the window in which its duplicates are recognised."""

"""What the outbox raises. Each message says what happened, to which record, and what to do."""

from __future__ import annotations


class OutboxError(Exception):
    """Base of the outbox's exceptions."""


class TransactionRequired(OutboxError):
    """enqueue() was called outside ``transaction.atomic()`` on the message's database alias."""


class DuplicateKey(OutboxError):
    """The (task, key) is already enqueued, with other arguments."""


class UnsupportedSignature(OutboxError):
    """The signature cannot be held as one message; the text says what to do instead."""


class UnserializableArgument(OutboxError, TypeError):
    """An argument, a header or an option cannot be written to the wire."""


class BrokerUnavailable(OutboxError):
    """A fresh connection to the broker failed, or the broker confirmed nothing in time.

    No message is at fault: nothing is counted against any of them, and they stay pending.
    """


def describe(exception: object) -> str:
    """Return the exception's class and text, of which an exception may have none."""
    try:
        text = str(exception)
    except Exception:  # an exception of the project's may do anything
        text = "(its text cannot be had)"
    return f"{type(exception).__name__}: {text}"

"""A burst of full batches, which overlap: the next one is on its way before the last is settled."""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import cycle

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.batch import Batch


class Burst:
    """Publishes batches one after the other, and awaits the confirms of each beside the next.

    The broker has something to do that way while the database claims and settles. A batch holds
    its transaction from the one to the other, so a second connection to the database takes turns
    with the thread's own.
    """

    def __init__(self, using: str, batch_on: Callable[[BaseDatabaseWrapper], Batch]) -> None:
        self._using = using
        self._batch_on = batch_on
        self._second: BaseDatabaseWrapper | None = None

    def batches(self) -> Generator[Batch]:
        """Give each batch when it is settled; end with the first one that is not full."""
        if self._second is None:
            self._second = connections.create_connection(self._using)
        turns = cycle((connections[self._using], self._second))
        published: Batch | None = None
        try:
            while published is None or (published.is_full and not published.unavailable):
                batch = self._batch_on(next(turns))
                batch.begin()
                last, published = published, batch
                if last is not None:
                    last.finish()
                    yield last
        finally:
            if published is not None:
                published.finish()
        yield published

    def close(self) -> None:
        """Close the second connection to the database."""
        second, self._second = self._second, None
        if second is not None:
            second.close()

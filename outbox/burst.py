"""A burst of full batches, which overlap: the broker's side and the database's keep both busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.batch import Batch

# One batch is claimed or settled, one is published, one awaits its last confirms.
CONNECTIONS = 3


class Burst:
    """Publishes batches in the caller's thread, and claims and settles them in another.

    Three connections to the database, because a batch holds its transaction from its claim to its
    settling. Not to be shared between threads.
    """

    def __init__(self, using: str, batch_on: Callable[[BaseDatabaseWrapper], Batch]) -> None:
        self._using = using
        self._batch_on = batch_on
        self._connections: list[BaseDatabaseWrapper] = []
        self._free: list[BaseDatabaseWrapper] = []

    def batches(self) -> Generator[Batch]:
        """Give each batch when it is settled; end with the first one that is not full."""
        if not self._connections:
            self._connections = [self._connection() for _ in range(CONNECTIONS)]
        self._free = list(self._connections)
        try:
            with ThreadPoolExecutor(1, "outbox-burst") as database:
                yield from self._overlapping(database)
        except BaseException:
            # Whatever is open on them ends with them.
            self.close()
            raise

    def close(self) -> None:
        """Close the connections to the database."""
        for connection in self._connections:
            connection.close()
        self._connections = []

    def _overlapping(self, database: ThreadPoolExecutor) -> Generator[Batch]:
        claimed: Future[Batch] | None = database.submit(self._claim)
        unpublished: Batch | None = None
        published: Batch | None = None
        settled: deque[Future[Batch]] = deque()
        try:
            while claimed is not None:
                batch = unpublished = claimed.result()
                claimed = database.submit(self._claim) if len(batch) == batch.size else None
                batch.publish()
                unpublished = None
                if published is not None:
                    settled.append(self._finish(published, database))
                published = batch
                if batch.unavailable:
                    break
                while len(settled) > 1:
                    yield settled.popleft().result()
        finally:
            if claimed is not None:
                database.submit(lambda: claimed.result().abandon())
            if unpublished is not None:
                database.submit(unpublished.abandon)
            if published is not None:
                settled.append(self._finish(published, database))
        while settled:
            yield settled.popleft().result()

    def _finish(self, batch: Batch, database: ThreadPoolExecutor) -> Future[Batch]:
        batch.await_confirms()
        return database.submit(self._settle, batch)

    def _claim(self) -> Batch:
        batch = self._batch_on(self._free.pop())
        batch.claim()
        return batch

    def _settle(self, batch: Batch) -> Batch:
        batch.settle()
        self._free.append(batch.connection)
        return batch

    def _connection(self) -> BaseDatabaseWrapper:
        connection = connections.create_connection(self._using)
        connection.inc_thread_sharing()
        return connection

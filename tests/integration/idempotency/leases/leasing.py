"""Leased work for tests: one operation, in either store, whose time can be moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import redis
from django.db import connection

from idempotency.execution import Operation, Outcome
from idempotency.leases import run_leased
from idempotency.models import IdempotencyKey
from idempotency.redis import RedisStore, name_of
from idempotency.stores import Found, Store, Terms

State = IdempotencyKey.State

AGE = """
UPDATE idempotency_idempotencykey SET
    created_at = created_at - by, finished_at = finished_at - by,
    expires_at = expires_at - by, lease_expires_at = lease_expires_at - by
FROM CAST(%s AS interval) AS by
"""

REDIS_AGE = """
for _, field in ipairs({'created_at', 'finished_at', 'expires_at', 'lease_expires_at'}) do
    if redis.call('HEXISTS', KEYS[1], field) == 1 then
        redis.call('HINCRBY', KEYS[1], field, -ARGV[1])
    end
end
"""


@dataclass
class Leasing:
    """Runs operations in a store."""

    store: Store

    @property
    def in_database(self) -> bool:
        return self.store.in_database

    def operation(self, key: str = "k", **options: Any) -> Operation:
        given = {"fingerprint": "f", "message_id": "m", "namespace": "tests", **options}
        return Operation(scope="", key=key, ttl=timedelta(hours=1), **given)

    def terms(self, **options: Any) -> Terms:
        return Terms(**{"lease": timedelta(seconds=30), **options})

    def run(
        self,
        func: Callable[[], Any] = lambda: "done",
        *,
        key: str = "k",
        fingerprint: str = "f",
        wait: timedelta = timedelta(0),
        **terms: Any,
    ) -> Outcome[Any]:
        operation = self.operation(key, fingerprint=fingerprint, wait=wait)
        return run_leased(
            self.store,
            IdempotencyKey.objects.using("default"),
            operation,
            func,
            self.terms(**terms),
        )

    def claim(self, key: str = "k", **terms: Any) -> UUID:
        """Claim for an owner that is never heard of again; return its token."""
        token = uuid4()
        taken = self.store.claim_lease(self.operation(key), self.terms(**terms), token, "owner")
        assert taken is not None
        return token

    def found(self, key: str = "k") -> Found | None:
        return self.store.look_up(self.operation(key))

    def record(self, key: str = "k") -> IdempotencyKey:
        found = self.found(key)
        assert found is not None
        return found.record

    def pass_time(self, by: timedelta, key: str = "k") -> None:
        """Have everything in the store happened that much earlier."""
        if isinstance(self.store, RedisStore):
            name = name_of(self.operation(key))
            microseconds = by // timedelta(microseconds=1)
            self.store.client.eval(REDIS_AGE, 1, name, str(microseconds))
        else:
            with connection.cursor() as cursor:
                cursor.execute(AGE, [str(by)])

    def make_stale(self, key: str = "k") -> None:
        self.pass_time(timedelta(seconds=31), key)


def redis_store(url: str) -> RedisStore:
    return RedisStore(redis.Redis.from_url(url))

"""All SQL about leased work. One statement for each change, each after the claim fenced by token.

The database's clock decides. ``expires_at`` of a row that is in progress is a ttl later than its
lease, so a live lease has never expired; it is null where only a person may end the uncertainty.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from django.db import (
    InterfaceError,
    OperationalError,
    connections,
    models,
    router,
    transaction,
)
from django.db.models import Q
from django.db.models.functions import Now

from idempotency import results
from idempotency.conf import conf
from idempotency.exceptions import ImproperlyUsed
from idempotency.stores import Found, Taken, Terms, describe

if TYPE_CHECKING:
    from idempotency.execution import Operation
    from idempotency.models import IdempotencyKey

# In the order of the model's fields.
COLUMNS = """
    id, namespace, scope, key, fingerprint, state, result, message_id, attempt, token, owner,
    lease_expires_at, checkpoint, error, created_at, finished_at, expires_at
"""

THE_ROW = "key = %(key)s AND namespace = %(namespace)s AND scope = %(scope)s"

MINE = f"{THE_ROW} AND token = %(token)s AND state = 'in_progress'"

# In one statement: 24 threads that meet at a stale lease have one winner.
CLAIM = f"""
WITH before AS (SELECT state FROM idempotency_idempotencykey WHERE {THE_ROW})
INSERT INTO idempotency_idempotencykey AS stored (
    namespace, scope, key, fingerprint, state, message_id, token, owner,
    created_at, lease_expires_at, expires_at
)
SELECT
    %(namespace)s, %(scope)s, %(key)s, %(fingerprint)s, 'in_progress', %(message_id)s,
    %(token)s::uuid, %(owner)s,
    now, now + %(lease)s, CASE WHEN %(reclaim)s THEN now + %(lease)s + %(ttl)s END
FROM clock_timestamp() AS now
WHERE (now - %(published_at)s::timestamptz > %(ttl)s) IS NOT TRUE
ON CONFLICT (key, namespace, scope) DO UPDATE SET
    attempt = CASE
        WHEN stored.state = 'completed' OR stored.expires_at <= excluded.created_at
        THEN 1 ELSE stored.attempt + 1
    END,
    checkpoint = CASE WHEN stored.expires_at <= excluded.created_at THEN NULL
        ELSE stored.checkpoint END,
    created_at = CASE
        WHEN stored.state = 'completed' OR stored.expires_at <= excluded.created_at
        THEN excluded.created_at ELSE stored.created_at
    END,
    fingerprint = excluded.fingerprint, state = excluded.state, result = NULL, error = '',
    message_id = excluded.message_id, token = excluded.token, owner = excluded.owner,
    lease_expires_at = excluded.lease_expires_at, finished_at = NULL,
    expires_at = excluded.expires_at
WHERE stored.expires_at <= excluded.created_at OR (
    (excluded.fingerprint = '' OR stored.fingerprint IN ('', excluded.fingerprint))
    AND CASE stored.state
        WHEN 'failed_retryable' THEN true
        WHEN 'in_progress' THEN stored.lease_expires_at <= excluded.created_at
            AND %(reclaim)s AND stored.attempt < %(max_attempts)s
        WHEN 'completed' THEN %(execute)s
        ELSE false
    END
)
RETURNING attempt, checkpoint, (SELECT state FROM before)
"""

LOOK_UP = f"""
SELECT lease_expires_at - clock_timestamp(), {COLUMNS}
FROM idempotency_idempotencykey
WHERE {THE_ROW} AND (expires_at > clock_timestamp()) IS NOT FALSE
"""

EXTEND = f"""
UPDATE idempotency_idempotencykey SET
    lease_expires_at = now + %(lease)s,
    expires_at = CASE WHEN expires_at IS NOT NULL THEN now + %(lease)s + %(ttl)s END,
    checkpoint = COALESCE(%(checkpoint)s::bytea, checkpoint)
FROM clock_timestamp() AS now
WHERE {MINE}
"""

SETTLE = f"""
UPDATE idempotency_idempotencykey SET
    state = %(state)s::text, result = %(result)s::bytea, error = %(error)s,
    checkpoint = CASE WHEN %(state)s::text <> 'completed' THEN checkpoint END,
    lease_expires_at = NULL, finished_at = now,
    expires_at = CASE WHEN %(state)s::text <> 'outcome_unknown' THEN now + %(ttl)s END
FROM clock_timestamp() AS now
WHERE {MINE} AND (lease_expires_at <= now OR NOT %(only_stale)s)
RETURNING {COLUMNS}
"""

# A first attempt that did nothing leaves nothing behind.
LET_GO = f"""
DELETE FROM idempotency_idempotencykey WHERE {MINE} AND attempt = 1 AND checkpoint IS NULL
"""

STALE = Q(state="in_progress", lease_expires_at__lte=Now())
LIVE = Q(state="in_progress", lease_expires_at__gt=Now())

NOTHING: Any = object()
"""Not given, where None is a value."""


class LeasedQuerySet(models.QuerySet["IdempotencyKey"]):
    """The PostgreSQL store of leased work, and the words of those who operate it."""

    unreachable: ClassVar[tuple[type[Exception], ...]] = (OperationalError, InterfaceError)
    in_database: ClassVar[bool] = True
    _db: str | None

    def claim_lease(
        self, operation: Operation, terms: Terms, token: UUID, owner: str
    ) -> Taken | None:
        row = self._row(
            CLAIM,
            {
                **_named(operation, token),
                "fingerprint": operation.fingerprint,
                "message_id": operation.message_id,
                "owner": owner,
                "lease": terms.lease,
                "ttl": operation.ttl,
                "reclaim": terms.on_stale == "reclaim",
                "execute": terms.on_completed == "execute",
                "max_attempts": terms.max_attempts,
                "published_at": operation.published_at,
            },
        )
        if row is None:
            return None
        attempt, checkpoint, before = row
        return Taken(attempt, checkpoint, reclaimed=attempt > 1 and before == "in_progress")

    def look_up(self, operation: Operation) -> Found | None:
        row = self._row(LOOK_UP, _named(operation))
        return row and Found(self._leased(row[1:]), row[0] or timedelta(0))

    def clock(self) -> datetime:
        # With a time zone, which a moment that Django reads has with USE_TZ only.
        epoch: float = self._row("SELECT extract(epoch FROM clock_timestamp())::float8", {})[0]
        return datetime.fromtimestamp(epoch, UTC)

    def extend(
        self, operation: Operation, token: UUID, lease: timedelta, checkpoint: bytes | None = None
    ) -> bool:
        parameters = {"lease": lease, "ttl": operation.ttl, "checkpoint": checkpoint}
        return self._count(EXTEND, {**_named(operation, token), **parameters}) == 1

    def settle(
        self,
        operation: Operation,
        token: UUID,
        state: str,
        *,
        result: bytes | None = None,
        error: str = "",
        only_stale: bool = False,
    ) -> IdempotencyKey | None:
        row = self._row(
            SETTLE,
            {
                **_named(operation, token),
                "state": state,
                "result": result,
                "error": error,
                "ttl": operation.ttl,
                "only_stale": only_stale,
            },
        )
        return row and self._leased(row)

    def let_go(self, operation: Operation, token: UUID) -> bool:
        if self._count(LET_GO, _named(operation, token)):
            return True
        return self.settle(operation, token, self.model.State.FAILED_RETRYABLE) is not None

    def recover(self) -> None:
        """Get rid of a connection that is broken."""
        connection = connections[self.db]
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()

    def resolvable(self) -> LeasedQuerySet:
        """What ``resolve`` moves."""
        return self.filter(Q(state=self.model.State.OUTCOME_UNKNOWN) | STALE)

    def releasable(self) -> LeasedQuerySet:
        """What ``release`` moves."""
        return self.filter(Q(state=self.model.State.FAILED_TERMINAL) | STALE)

    def resolve(
        self,
        *,
        completed: Any = NOTHING,
        failed: BaseException | None = None,
        retry: bool = False,
    ) -> int:
        """Say how operations ended whose outcome is unknown, or whose lease is stale.

        ``completed``: they took effect, with this result; ``failed``: they failed for good, with
        this error; ``retry``: they may be executed again, and keep their steps. Returns how many
        there were; others are left alone.
        """
        states = self.model.State
        if (completed is not NOTHING) + (failed is not None) + bool(retry) != 1:
            raise ImproperlyUsed("resolve() takes one of completed=, failed= and retry=True.")
        values: dict[str, Any] = {"state": states.FAILED_RETRYABLE, "error": ""}
        if failed is not None:
            values = {"state": states.FAILED_TERMINAL, "error": describe(failed)}
        elif not retry:
            result = results.dumps(completed)
            values = {"state": states.COMPLETED, "result": result, "checkpoint": None, "error": ""}
        return self.resolvable()._end(**values)

    def release(self) -> int:
        """Let operations run again that failed for good or whose lease is stale; return how many.

        They keep their steps. A live lease is left alone: it ends by itself.
        """
        return self.releasable()._end(state=self.model.State.FAILED_RETRYABLE, error="")

    def forget(self) -> int:
        """Delete keys, as if their operations had never run; return how many.

        A live lease is left alone.
        """
        return self.exclude(LIVE).delete()[0]

    def purge(self, batch_size: int = 1000) -> int:
        """Delete at most ``batch_size`` expired keys; return how many. Call it until that is 0.

        Rows that somebody holds are skipped, and a live lease never expires.
        """
        alias = self._db or router.db_for_write(self.model)
        keys = self.using(alias)
        with transaction.atomic(using=alias):
            batch = keys.filter(expires_at__lte=Now()).order_by("expires_at", "pk")
            ids = batch.select_for_update(skip_locked=True).values_list("pk", flat=True)
            return keys.filter(pk__in=list(ids[:batch_size])).delete()[0]

    def _end(self, **values: Any) -> int:
        return self.update(
            **values, lease_expires_at=None, finished_at=Now(), expires_at=Now() + conf.TTL
        )

    def _leased(self, row: tuple[Any, ...]) -> IdempotencyKey:
        names = [name.strip() for name in COLUMNS.split(",")]
        return self.model.from_db(self.db, names, row)

    def _row(self, sql: str, parameters: Mapping[str, Any]) -> Any:
        with connections[self.db].cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone()

    def _count(self, sql: str, parameters: Mapping[str, Any]) -> int:
        with connections[self.db].cursor() as cursor:
            cursor.execute(sql, parameters)
            return int(cursor.rowcount)


def _named(operation: Operation, token: UUID | None = None) -> dict[str, Any]:
    return {
        "namespace": operation.namespace,
        "scope": operation.scope,
        "key": operation.key,
        "token": token,
    }

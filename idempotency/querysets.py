"""All SQL about keys. The database's clock decides, and inside a transaction it runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from django.db import IntegrityError, connections, models, router

from idempotency import digests, execution, keys
from idempotency.calls import key_text
from idempotency.conf import conf, duration
from idempotency.exceptions import KeyInProgress
from idempotency.leased_querysets import LeasedQuerySet

if TYPE_CHECKING:
    from idempotency.execution import Operation, Outcome, Statement
    from idempotency.models import IdempotencyKey

T = TypeVar("T")

# Seconds since 1970, because a driver takes longer to read a timestamp than PostgreSQL to lock.
TRY_LOCK = """
SELECT pg_try_advisory_xact_lock(%(lock)s), extract(epoch FROM clock_timestamp())::float8
"""

FIND = """
SELECT
    expires_at <= clock_timestamp(),
    id, fingerprint, state, result, message_id, created_at, finished_at, expires_at,
    token, owner, error
FROM idempotency_idempotencykey
WHERE key = %(key)s AND namespace = %(namespace)s AND scope = %(scope)s
"""

LOCK_AND_FIND = f"{TRY_LOCK};{FIND}"

LIMIT_WAIT = """
SELECT current_setting('lock_timeout'), set_config('lock_timeout', %(limit)s, true)
"""

WAIT = "SELECT pg_advisory_xact_lock(%(lock)s)"

UNLIMIT_WAIT = "SELECT set_config('lock_timeout', %(limit)s, true)"

# Plain where there was no row: ON CONFLICT would cost a third more.
COMPLETE = """
INSERT INTO idempotency_idempotencykey AS stored (
    namespace, scope, key, fingerprint, state, result, message_id,
    created_at, finished_at, expires_at
)
VALUES (
    %s, %s, %s, %s, 'completed', %s, %s,
    to_timestamp(%s), clock_timestamp(), clock_timestamp() + make_interval(secs => %s)
)
{replace}
RETURNING id
"""

INSERT = COMPLETE.format(replace="")

# The row that the claim saw, or none if it was purged meanwhile, and no other.
REPLACE = COMPLETE.format(
    replace="""
ON CONFLICT (key, namespace, scope) DO UPDATE SET
    fingerprint = excluded.fingerprint, state = excluded.state, result = excluded.result,
    message_id = excluded.message_id, created_at = excluded.created_at,
    finished_at = excluded.finished_at, expires_at = excluded.expires_at,
    attempt = excluded.attempt, token = NULL, owner = '', lease_expires_at = NULL,
    checkpoint = NULL, error = ''
WHERE stored.id = %s AND stored.token IS NOT DISTINCT FROM %s::uuid
"""
)

# What atomic() does at its end is then nothing: the driver knows that no transaction is open.
COMMIT: Statement = "COMMIT", ()

# SELECT DISTINCT would read the whole table. The index is in the collation "C".
NAMESPACES = """
WITH RECURSIVE names (name) AS (
    (
        SELECT namespace COLLATE "C" FROM idempotency_idempotencykey
        ORDER BY namespace COLLATE "C" LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT namespace COLLATE "C" FROM idempotency_idempotencykey
        WHERE namespace COLLATE "C" > name ORDER BY namespace COLLATE "C" LIMIT 1
    )
    FROM names
    WHERE name IS NOT NULL
)
SELECT name FROM names WHERE name IS NOT NULL LIMIT %s
"""

COLUMNS = (
    "id",
    "fingerprint",
    "state",
    "result",
    "message_id",
    "created_at",
    "finished_at",
    "expires_at",
    "token",
    "owner",
    "error",
)

UNIQUE = "idempotency_key_namespace_scope"

LONGEST_WAIT = 2**31 - 1
"""Milliseconds: the largest lock_timeout."""


class Claim(NamedTuple):
    """What a transaction got for an operation."""

    held: bool
    """It has the lock; nobody else executes the operation before it ends."""
    began: float
    """The database's time, in seconds since 1970."""
    found: IdempotencyKey | None
    """The row of the key, as far as it has committed."""
    expired: bool
    """``found`` is too old to be recognised, and is only there to be replaced."""

    @property
    def began_at(self) -> datetime:
        """The database's time."""
        return datetime.fromtimestamp(self.began, UTC)

    @property
    def known(self) -> IdempotencyKey | None:
        """The row of this very operation."""
        return None if self.expired else self.found


class IdempotencyKeyQuerySet(LeasedQuerySet):
    """Keys. ``claim``, ``wait`` and ``complete`` belong in one transaction on this alias."""

    def claim(self, operation: Operation) -> Claim:
        """Take the operation's lock for this transaction, if it is free, and find its row.

        Lock, then look, in two statements: one sees only what had committed before it began.
        Both travel together where the driver lets them.
        """
        connection = connections[self.db]
        parameters: dict[str, Any] = {
            "lock": keys.lock_number(operation.namespace, operation.scope, operation.key),
            "namespace": operation.namespace,
            "scope": operation.scope,
            "key": operation.key,
        }
        with connection.cursor() as cursor:
            if connection.settings_dict["OPTIONS"].get("server_side_binding"):
                cursor.execute(TRY_LOCK, parameters)
                held, began = cursor.fetchone()
                cursor.execute(FIND, parameters)
            else:
                cursor.execute(LOCK_AND_FIND, parameters)
                held, began = cursor.fetchone()
                cursor.nextset()
            row = cursor.fetchone()
        if row is None:
            return Claim(held, began, None, expired=False)
        expired, *values = row
        return Claim(held, began, self._record(operation, COLUMNS, values), expired)

    def wait(self, operation: Operation) -> Claim:
        """Claim once the transaction that has the lock is over; the body inherits no lock_timeout.

        Raises ``KeyInProgress`` at once without ``operation.wait``, and ``OperationalError``
        (55P03) if the wait is in vain.
        """
        if not operation.wait:
            raise KeyInProgress(f"{operation} is being executed: try again later.")
        milliseconds = min(max(operation.wait // timedelta(milliseconds=1), 1), LONGEST_WAIT)
        lock = keys.lock_number(operation.namespace, operation.scope, operation.key)
        with connections[self.db].cursor() as cursor:
            cursor.execute(LIMIT_WAIT, {"limit": f"{milliseconds}ms"})
            before, _ = cursor.fetchone()
            cursor.execute(WAIT, {"lock": lock})
            cursor.execute(UNLIMIT_WAIT, {"limit": before})
        return self.claim(operation)

    def complete(
        self,
        operation: Operation,
        claim: Claim,
        result: bytes,
        receipts: Sequence[Statement] = (),
        *,
        last: bool = False,
    ) -> int:
        """Write the operation's row, in the place of what the claim found; return its id.

        ``receipts`` are written in the same round trip. ``last``: nothing more is written in this
        block of ``atomic()``; where the transaction ends with it, it is committed in the same round
        trip as well. Raises ``KeyInProgress`` if somebody has written the row since, which the lock
        prevents but for a snapshot that is older than the lock (REPEATABLE READ).
        """
        parameters = [
            operation.namespace,
            operation.scope,
            operation.key,
            operation.fingerprint,
            result,
            operation.message_id,
            claim.began,
            operation.ttl.total_seconds(),
        ]
        end: list[Statement] = []
        if claim.found is None:
            own: Statement = INSERT, parameters
            # An atomic() that ends in a commit stands alone: each other one adds to this list.
            if last and not connections[self.db].savepoint_ids:
                end = [COMMIT]
        else:
            own = REPLACE, [*parameters, claim.found.pk, claim.found.token]
        try:
            row = self.write([own, *receipts, *end])
        except IntegrityError as error:
            diagnosis = getattr(error.__cause__, "diag", None)
            if getattr(diagnosis, "constraint_name", None) != UNIQUE:
                raise
            raise written_meanwhile(operation) from error
        if row is None:
            raise written_meanwhile(operation)
        return int(row[0])

    def completed(self, operation: Operation, pk: int, result: bytes) -> IdempotencyKey:
        """Return the row that ``complete`` has written; its times are read if somebody asks."""
        completed = self.model.State.COMPLETED
        values = (pk, operation.fingerprint, completed, result, operation.message_id)
        return self._record(operation, COLUMNS[: len(values)], values)

    def write(self, statements: Sequence[Statement]) -> Any:
        """Execute statements, in one round trip where the driver lets them travel together.

        Returns the first row of the first one, None without.
        """
        if not statements:
            return None
        connection = connections[self.db]
        with connection.cursor() as cursor:
            if connection.settings_dict["OPTIONS"].get("server_side_binding"):
                cursor.execute(*statements[0])
                row = cursor.fetchone() if cursor.description else None
                for statement in statements[1:]:
                    cursor.execute(*statement)
                return row
            cursor.execute(
                ";".join(sql for sql, _ in statements),
                [parameter for _, parameters in statements for parameter in parameters],
            )
            return cursor.fetchone() if cursor.description else None

    def namespaces(self, limit: int = 1000) -> list[str]:
        """Return the namespaces in the whole table, for the admin's search; ``limit`` at most.

        One step down the index for each, however many keys there are.
        """
        with connections[self.db].cursor() as cursor:
            cursor.execute(NAMESPACES, [limit])
            return [name for (name,) in cursor]

    def _record(
        self, operation: Operation, columns: Sequence[str], row: Sequence[Any]
    ) -> IdempotencyKey:
        values = {
            "namespace": operation.namespace,
            "scope": operation.scope,
            "key": operation.key,
            **dict(zip(columns, row, strict=True)),
        }
        # from_db() takes them in the model's order, whatever their names say.
        names = [f.attname for f in self.model._meta.concrete_fields if f.attname in values]
        return self.model.from_db(self.db, names, [values[name] for name in names])


class IdempotencyKeyManager(models.Manager.from_queryset(IdempotencyKeyQuerySet)):  # type: ignore[misc]
    """``IdempotencyKey.objects``."""

    def run_once(
        self,
        key: str | int | UUID,
        func: Callable[[], T],
        *,
        namespace: str,
        scope: str | int | UUID = "",
        fingerprint: Any = None,
        ttl: float | timedelta | None = None,
        wait: float | timedelta | None = None,
        using: str | None = None,
    ) -> Outcome[T]:
        """Run ``func`` once per (namespace, scope, key): its effects and result are a transaction.

        ``fingerprint``: any value that a duplicate must share, such as the arguments. ``ttl``:
        seconds or timedelta for which duplicates are recognised (``IDEMPOTENCY_TTL``). ``wait``:
        seconds or timedelta to wait for a twin that is executing; by default not at all.

        Raises ``KeyMissing`` for an empty key or a scope that is None, ``KeyInProgress``,
        ``KeyReused`` for another fingerprint, ``ImproperlyUsed`` for a result that cannot be
        stored, and what ``func`` raises; after any of them nothing is written, and the next call
        runs it again.
        """
        alias = using or router.db_for_write(self.model)
        operation = execution.Operation(
            namespace=namespace,
            scope="" if scope == "" else key_text(scope, f"The scope for {namespace!r}"),
            key=key_text(key, f"The key for {namespace!r}"),
            ttl=conf.TTL if ttl is None else duration(ttl, "ttl"),
            wait=timedelta(0) if wait is None else duration(wait, "wait", least=timedelta(0)),
            fingerprint="" if fingerprint is None else digests.fingerprint(fingerprint),
        )
        return execution.run_once(self.using(alias), operation, func)


def written_meanwhile(operation: Operation) -> KeyInProgress:
    return KeyInProgress(f"{operation} was executed by another meanwhile: try again later.")

"""The Redis or Valkey store of leased work whose effects are not in the database.

A hash for each key, named by a digest. Each change is one Lua script, by the server's clock, and
Redis itself drops what has expired. A server that may forget (no append-only file, eviction, an
asynchronous failover) forgets leases and completions too, and then work runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from idempotency import results
from idempotency.conf import conf
from idempotency.digests import make_key
from idempotency.exceptions import ImproperlyUsed
from idempotency.models import IdempotencyKey
from idempotency.stores import Found, Taken, Terms, describe

if TYPE_CHECKING:
    from idempotency.execution import Operation

TIMEOUT = 5
"""Seconds to wait for the server's answer; the URL may say otherwise (``?socket_timeout=``)."""

# Times are microseconds since the epoch: exact in Lua's numbers until the year 2255.
COMMON = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local old = {}
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do old[flat[i]] = flat[i + 1] end
if old.expires_at and tonumber(old.expires_at) <= now then
    redis.call('DEL', KEYS[1])
    old = {}
end
local function write(...) redis.call('HSET', KEYS[1], ...) end
local function clear(...) redis.call('HDEL', KEYS[1], ...) end
local function expire(at)
    write('expires_at', at)
    redis.call('PEXPIREAT', KEYS[1], math.ceil(at / 1000))
end
local function never_expire()
    clear('expires_at')
    redis.call('PERSIST', KEYS[1])
end
local function stale()
    return old.state == 'in_progress' and tonumber(old.lease_expires_at) <= now
end
local function mine(token) return old.state == 'in_progress' and old.token == token end
"""

CLAIM = f"""{COMMON}
local namespace, scope, key, fingerprint, message_id, token, owner = unpack(ARGV, 1, 7)
local lease, ttl, max_attempts = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local reclaim, execute = ARGV[11] == '1', ARGV[12] == '1'
if ARGV[13] ~= '' and now - tonumber(ARGV[13]) > ttl then return false end
if old.state then
    local same = fingerprint == '' or old.fingerprint == '' or old.fingerprint == fingerprint
    local free = old.state == 'failed_retryable'
        or (stale() and reclaim and tonumber(old.attempt) < max_attempts)
        or (old.state == 'completed' and execute)
    if not (same and free) then return false end
end
local fresh = not old.state or old.state == 'completed'
local attempt = fresh and 1 or old.attempt + 1
-- First what a full server refuses: a script that has deleted something is let through.
write('namespace', namespace, 'scope', scope, 'key', key, 'fingerprint', fingerprint,
    'state', 'in_progress', 'message_id', message_id, 'token', token, 'owner', owner,
    'attempt', attempt, 'error', '', 'created_at', fresh and now or old.created_at,
    'lease_expires_at', now + lease)
clear('finished_at', 'result')
if fresh then clear('checkpoint') end
if reclaim then expire(now + lease + ttl) else never_expire() end
return {{attempt, old.checkpoint or false, old.state == 'in_progress' and 1 or 0}}
"""

LOOK_UP = f"""{COMMON}
if not old.state then return false end
return {{now, flat}}
"""

EXTEND = f"""{COMMON}
if not mine(ARGV[1]) then return 0 end
local lease, ttl = tonumber(ARGV[2]), tonumber(ARGV[3])
write('lease_expires_at', now + lease)
if old.expires_at then expire(now + lease + ttl) end
if ARGV[4] ~= '' then write('checkpoint', ARGV[4]) end
return 1
"""

ENDING = """
local function finish(state, result, error, ttl)
    write('state', state, 'error', error, 'finished_at', now)
    clear('lease_expires_at')
    if result ~= '' then write('result', result) end
    if state == 'completed' then clear('checkpoint') end
    if state == 'outcome_unknown' then never_expire() else expire(now + ttl) end
    return {now, redis.call('HGETALL', KEYS[1])}
end
"""

SETTLE = f"""{COMMON}{ENDING}
if not mine(ARGV[1]) or (ARGV[6] == '1' and not stale()) then return false end
return finish(ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]))
"""

LET_GO = f"""{COMMON}{ENDING}
if not mine(ARGV[1]) then return 0 end
if old.attempt == '1' and not old.checkpoint then
    redis.call('DEL', KEYS[1])
else
    finish('failed_retryable', '', '', tonumber(ARGV[2]))
end
return 1
"""

# In what states, then like SETTLE.
OVERRULE = f"""{COMMON}{ENDING}
if not (old.state == ARGV[1] or stale()) then return 0 end
finish(ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]))
return 1
"""

FORGET = f"""{COMMON}
if not old.state or (old.state == 'in_progress' and not stale()) then return 0 end
return redis.call('DEL', KEYS[1])
"""

NOTHING: Any = object()
"""Not given, where None is a value."""
MICROSECOND = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(microseconds: bytes | int) -> datetime:
    return EPOCH + int(microseconds) * MICROSECOND


def _microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // MICROSECOND


READERS: dict[str, Callable[[bytes], Any]] = {
    "attempt": int,
    "token": lambda value: UUID(value.decode()),
    "result": bytes,
    "checkpoint": bytes,
    "lease_expires_at": _moment,
    "created_at": _moment,
    "finished_at": _moment,
    "expires_at": _moment,
}
"""What is not text."""


class RedisStore:
    """A ``Store``, and for one key at a time the words of those who operate it."""

    unreachable: ClassVar[tuple[type[Exception], ...]] = (
        RedisConnectionError,
        RedisTimeoutError,
        OutOfMemoryError,
        ReadOnlyError,
    )
    in_database: ClassVar[bool] = False

    def __init__(self, client: Redis | None = None) -> None:
        self.client = client or client_of(conf.REDIS_URL)

    def claim_lease(
        self, operation: Operation, terms: Terms, token: UUID, owner: str
    ) -> Taken | None:
        taken = self._run(
            CLAIM,
            operation,
            operation.namespace,
            operation.scope,
            operation.key,
            operation.fingerprint,
            operation.message_id,
            str(token),
            owner,
            terms.lease // MICROSECOND,
            operation.ttl // MICROSECOND,
            terms.max_attempts,
            int(terms.on_stale == "reclaim"),
            int(terms.on_completed == "execute"),
            "" if operation.published_at is None else _microseconds(operation.published_at),
        )
        return taken and Taken(int(taken[0]), taken[1], reclaimed=bool(taken[2]))

    def look_up(self, operation: Operation) -> Found | None:
        return _found(self._run(LOOK_UP, operation))

    def clock(self) -> datetime:
        seconds, microseconds = self.client.time()
        return _moment(seconds * 1_000_000 + microseconds)

    def extend(
        self, operation: Operation, token: UUID, lease: timedelta, checkpoint: bytes | None = None
    ) -> bool:
        times = (lease // MICROSECOND, operation.ttl // MICROSECOND)
        return bool(self._run(EXTEND, operation, str(token), *times, checkpoint or b""))

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
        answer = self._run(
            SETTLE,
            operation,
            str(token),
            str(state),
            result or b"",
            error,
            operation.ttl // MICROSECOND,
            int(only_stale),
        )
        found = _found(answer)
        return found and found.record

    def let_go(self, operation: Operation, token: UUID) -> bool:
        return bool(self._run(LET_GO, operation, str(token), operation.ttl // MICROSECOND))

    def recover(self) -> None:
        """The client reconnects by itself."""

    def resolve(
        self,
        operation: Operation,
        *,
        completed: Any = NOTHING,
        failed: BaseException | None = None,
        retry: bool = False,
    ) -> bool:
        """Like ``IdempotencyKey.objects.filter(…).resolve()``, for one operation."""
        if (completed is not NOTHING) + (failed is not None) + bool(retry) != 1:
            raise ImproperlyUsed("resolve() takes one of completed=, failed= and retry=True.")
        states = IdempotencyKey.State
        if failed is not None:
            end = (states.FAILED_TERMINAL, b"", describe(failed))
        elif retry:
            end = (states.FAILED_RETRYABLE, b"", "")
        else:
            end = (states.COMPLETED, results.dumps(completed), "")
        return self._overrule(operation, states.OUTCOME_UNKNOWN, *end)

    def release(self, operation: Operation) -> bool:
        """Like ``IdempotencyKey.objects.filter(…).release()``, for one operation."""
        states = IdempotencyKey.State
        return self._overrule(operation, states.FAILED_TERMINAL, states.FAILED_RETRYABLE, b"", "")

    def forget(self, operation: Operation) -> bool:
        """Like ``IdempotencyKey.objects.filter(…).forget()``, for one operation."""
        return bool(self._run(FORGET, operation))

    def _overrule(
        self, operation: Operation, before: str, state: str, result: bytes, error: str
    ) -> bool:
        ttl = operation.ttl // MICROSECOND
        return bool(self._run(OVERRULE, operation, str(before), str(state), result, error, ttl))

    def _run(self, script: str, operation: Operation, *arguments: str | bytes | int) -> Any:
        return self.client.register_script(script)([name_of(operation)], arguments)


def name_of(operation: Operation) -> str:
    """Return the name of the operation's hash: a digest, because a key may be personal."""
    return f"idempotency:{make_key(operation.namespace, operation.key, scope=operation.scope)}"


@cache
def client_of(url: str) -> Redis:
    """Return this process's client of a server; it is safe in threads and across forks."""
    if not url:
        raise ImproperlyUsed('store="redis" needs IDEMPOTENCY_REDIS_URL to name the server.')
    return Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)


def _found(answer: Any) -> Found | None:
    if not answer:
        return None
    now, flat = answer
    pairs = zip(flat[::2], flat[1::2], strict=True)
    values = {
        name.decode(): READERS.get(name.decode(), bytes.decode)(value) for name, value in pairs
    }
    record = IdempotencyKey(**values)
    ends_at = record.lease_expires_at
    return Found(record, timedelta(0) if ends_at is None else ends_at - _moment(now))

"""What is widely taught, told in our own words: samples that look idempotent and are not.

Each call is one delivery to one worker. The tests show what goes wrong with each.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from django.db import IntegrityError, connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

TABLES = """
CREATE TABLE flawed_scores (player integer PRIMARY KEY, score integer NOT NULL);
CREATE TABLE flawed_notifications (notification text, recipient text);
CREATE TABLE flawed_results (key text PRIMARY KEY, result text);
CREATE TABLE flawed_executions (key text PRIMARY KEY, status text, result text);
CREATE TABLE flawed_log (key text PRIMARY KEY, payment integer, status text, result text);
"""


class Killed(BaseException):
    """The worker's process has ended here."""


class GatewayRefused(Exception):
    """What the payment sample expects of its gateway."""


def execute(sql: str, *parameters: Any) -> list[Any]:
    """One statement, committed at once."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall()) if cursor.description else []


def update_score(player: int, points: int) -> None:
    execute("UPDATE flawed_scores SET score = score + %s WHERE player = %s", points, player)


def set_price(product: str, price: int, prices: dict[str, int]) -> None:
    """An absolute assignment: the same twice, but not in any order."""
    prices[product] = price


def notify(notification: str, recipient: str, send: Callable[[], object]) -> str:
    if execute("SELECT 1 FROM flawed_notifications WHERE notification = %s", notification):
        return "Already sent"
    send()
    execute("INSERT INTO flawed_notifications VALUES (%s, %s)", notification, recipient)
    return "Sent"


def key_of(name: str, **arguments: object) -> str:
    text = f"{name}:{json.dumps(arguments, sort_keys=True)}"
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def charge(payment: int, amount: float, gateway: Callable[[], object]) -> object:
    key = key_of("charge", payment=payment, amount=amount)
    known = execute("SELECT result FROM flawed_results WHERE key = %s", key)
    if known:
        return known[0][0]
    result = gateway()
    execute("INSERT INTO flawed_results VALUES (%s, %s)", key, json.dumps(result))
    return result


def under_lock(redis: Redis, name: str, task_id: str, work: Callable[[], object]) -> object:
    if not redis.set(name, task_id, nx=True, ex=3600):
        raise RuntimeError(f"{name} is being worked on")
    try:
        return work()
    finally:
        release(redis, name, task_id)


def release(redis: Redis, name: str, task_id: str) -> None:
    if redis.get(name) == task_id.encode():
        redis.delete(name)


def with_table(key: str, work: Callable[[], object]) -> object:
    """A table with a unique key and a status, and an object that knows only its own session."""
    try:
        execute("INSERT INTO flawed_executions VALUES (%s, 'processing')", key)
        ours = True
    except IntegrityError:
        ours = False
        ((status, result),) = execute(
            "SELECT status, result FROM flawed_executions WHERE key = %s", key
        )
        if status == "completed":
            return json.loads(result)
        if status == "processing":
            raise RuntimeError(f"{key} is being processed") from None
    # A row that says "failed" comes here too, and "ours" is not in the session to be saved.
    try:
        result = work()
    except Exception as error:
        _finish(key, "failed", str(error), save=ours)
        raise
    _finish(key, "completed", result, save=ours)
    return result


def _finish(key: str, status: str, result: object, *, save: bool) -> None:
    if save:
        execute(
            "UPDATE flawed_executions SET status = %s, result = %s WHERE key = %s",
            status,
            json.dumps(result),
            key,
        )


def seen_message(redis: Redis, data: object, work: Callable[[], object]) -> object:
    digest = hashlib.md5(
        json.dumps(data, sort_keys=True).encode(), usedforsecurity=False
    ).hexdigest()
    if redis.get(f"seen:{digest}"):
        return "Duplicate message skipped"
    result = work()
    redis.set(f"seen:{digest}", "1", ex=86400)
    return result


def pay(key: str, payment: int, gateway: Callable[[], object]) -> object:
    """The complete example, in a lock that it holds (so the lock is left out)."""
    known = execute("SELECT status, result FROM flawed_log WHERE key = %s", key)
    if known and known[0][0] == "completed":
        return known[0][1]
    if known and known[0][0] == "processing":
        raise RuntimeError(f"{key} is being processed")
    execute("INSERT INTO flawed_log VALUES (%s, %s, 'processing')", key, payment)
    try:
        result = gateway()
    except GatewayRefused as error:
        sql = "UPDATE flawed_log SET status = 'failed', result = %s WHERE key = %s"
        execute(sql, str(error), key)
        raise
    sql = "UPDATE flawed_log SET status = 'completed', result = %s WHERE key = %s"
    execute(sql, json.dumps(result), key)
    return result

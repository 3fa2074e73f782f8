"""Redis lock: it spares work that would be done twice. PostgreSQL keeps it from counting twice."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from celery import Task, shared_task
from django.conf import settings
from redis import Redis
from redis.exceptions import LockError, RedisError

from idempotency import idempotent
from sample_project.guide.models import Label

logger = logging.getLogger(__name__)

DRAWING_TAKES_AT_MOST = 30


@shared_task(bind=True, max_retries=None)
def print_label(self: Task[..., Any], order_id: int) -> int:
    """Draw a label, which takes long, and keep it. One worker at a time draws the same one."""
    redis = Redis.from_url(settings.GUIDE_REDIS_URL)
    # Each acquire() makes a token of its own, and one Lua script compares and deletes.
    lock = redis.lock(f"guide:label:{order_id}", timeout=DRAWING_TAKES_AT_MOST, blocking=False)
    try:
        mine = lock.acquire()
    except RedisError:
        logger.warning("No Redis, so no lock: a label may be drawn twice. It is kept once.")
        mine = True
    if not mine:
        raise self.retry(countdown=1)
    try:
        return keep_label(order_id, draw(order_id))
    finally:
        # Expired, or Redis is gone: then it is not ours to release.
        with suppress(LockError, RedisError):
            lock.release()
        redis.close()


def draw(order_id: int) -> str:
    """Take a second of somebody's CPU, as drawing a label would."""
    return f"<svg><text>{order_id}</text></svg>"


@idempotent(namespace="guide.label", key="{order_id}")
def keep_label(order_id: int, drawing: str) -> int:
    return Label.objects.create(order_id=order_id).pk

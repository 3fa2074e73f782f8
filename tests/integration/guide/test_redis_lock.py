"""docs/guide/redis-lock.md"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from celery.exceptions import Retry

from idempotency.exceptions import KeyInProgress
from sample_project.guide import lock
from sample_project.guide.models import Label
from sample_project.guide.tasks import print_label
from tests.integration.guide import flawed
from tests.integration.guide.racing import race

if TYPE_CHECKING:
    from redis import Redis

pytestmark = pytest.mark.django_db(transaction=True)

NAME = "guide:label:7"


def test_the_flaw_a_lock_remembers_nothing(redis: Redis) -> None:
    done: list[int] = []
    for _ in range(2):
        flawed.under_lock(redis, "lock", "task", lambda: done.append(1))
    assert len(done) == 2


def test_the_flaw_a_redelivery_has_the_same_task_id_and_loses_its_lock_to_the_first(
    redis: Redis,
) -> None:
    task_id = str(uuid4())
    at_work: list[str] = []

    def redelivery() -> None:
        at_work.append("second")
        flawed.release(redis, "lock", task_id)  # the first delivery ends, and so its "finally"
        flawed.under_lock(redis, "lock", "another task", lambda: at_work.append("third"))

    redis.set("lock", task_id, nx=True, ex=3600)  # the first delivery's, until it expires
    redis.delete("lock")
    flawed.under_lock(redis, "lock", task_id, redelivery)
    assert at_work == ["second", "third"]


def test_the_flaw_a_killed_worker_blocks_for_an_hour(redis: Redis) -> None:
    # What a killed worker leaves: nobody's "finally" runs.
    redis.set("lock", "task", nx=True, ex=3600)
    with pytest.raises(RuntimeError, match="is being worked on"):
        flawed.under_lock(redis, "lock", "another", lambda: None)


def test_a_second_delivery_gets_the_first_label(redis: Redis) -> None:
    assert print_label(7) == print_label(7)
    assert Label.objects.filter(order_id=7).count() == 1
    assert not redis.exists(NAME)


def test_while_one_draws_the_other_comes_back_later(redis: Redis) -> None:
    redis.set(NAME, "somebody's", ex=60)
    with pytest.raises(Retry):
        print_label(7)
    assert not Label.objects.exists()
    assert redis.get(NAME) == b"somebody's"


def test_when_the_lock_expires_too_soon_one_label_is_kept(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(order_id: int) -> str:
        redis.delete(NAME)  # expired while somebody was paused
        redis.set(NAME, "the next one's", ex=60)
        return "drawn"

    monkeypatch.setattr(lock, "draw", draw)
    print_label(7)
    assert redis.get(NAME) == b"the next one's"
    redis.delete(NAME)
    print_label(7)
    assert Label.objects.count() == 1


def test_without_redis_one_label_is_kept(settings: Any) -> None:
    settings.GUIDE_REDIS_URL = "redis://127.0.0.1:1/0"
    results = race(lambda: print_label(7))
    (label,) = Label.objects.all()
    assert label.pk in results
    assert all(result == label.pk or isinstance(result, KeyInProgress) for result in results)

"""A key names one intent: the same task and key again gives the first message."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import chain
from django.db import connection, connections, transaction

from outbox.exceptions import DuplicateKey
from outbox.models import OutboxMessage
from tests.helpers import wait_for
from tests.project import tasks
from tests.unit.outbox.rows import message

record: Any = tasks.record
fail: Any = tasks.fail
messages = OutboxMessage.objects

pytestmark = [pytest.mark.django_db(databases=["default", "other"]), pytest.mark.database]


@pytest.mark.parametrize("status", OutboxMessage.Status.values)
def test_the_same_key_gives_the_first_message_whatever_became_of_it(status: str) -> None:
    first = message(status, record.s("x", lock=None), key="k")
    again = messages.enqueue(record.s("x", lock=None).set(countdown=5, priority=3), key="k")
    assert again == first
    assert again.status == status
    assert messages.count() == 1


def test_the_key_is_the_tasks() -> None:
    assert messages.enqueue(record.s("x"), key="k") != messages.enqueue(fail.s("x"), key="k")
    assert messages.count() == 2


def test_the_key_is_the_aliases() -> None:
    first = messages.enqueue(record.s("x"), key="k")
    assert messages.enqueue(record.s("x"), key="k", using="other") != first


def test_without_a_key_each_call_is_an_intent() -> None:
    assert messages.enqueue(record.s("x")) != messages.enqueue(record.s("x"))


@pytest.mark.parametrize("other", [record.s("y"), record.s("x", lock=1), record.s(label="x")])
def test_the_same_key_with_other_arguments_is_refused(other: Any) -> None:
    first = messages.enqueue(record.s("x"), key="k")
    with pytest.raises(DuplicateKey, match=f"'k' as message {first.pk}, with other arguments"):
        messages.enqueue(other, key="k")
    assert messages.get() == first


class Parcel:
    """Like many a class, it does not say when two of it are equal."""


def test_pickled_objects_without_an_equality_are_compared_by_their_bytes() -> None:
    first = messages.enqueue(record.s(Parcel()).set(serializer="pickle"), key="k")
    assert messages.enqueue(record.s(Parcel()).set(serializer="pickle"), key="k") == first


def test_another_serializer_is_not_another_intent() -> None:
    first = messages.enqueue(record.s("x"), key="k")
    assert messages.enqueue(record.s("x").set(serializer="pickle"), key="k") == first
    with pytest.raises(DuplicateKey):
        messages.enqueue(record.s("y").set(serializer="pickle"), key="k")


def test_a_chain_has_its_heads_key() -> None:
    first = messages.enqueue(chain(record.s("x"), fail.si("y")), key="k")
    assert messages.enqueue(record.s("x"), key="k") == first


@pytest.mark.parametrize("key", ["", "x" * 256, "nul\0", 5, b"x", None])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    if key is not None:
        with pytest.raises(ValueError, match="key must be a string of 1 to 255 characters"):
            messages.enqueue(record.s("x"), key=key)
    with pytest.raises(ValueError, match="key must be a string of 1 to 255 characters"):
        messages.enqueue_many([record.s("x"), record.s("y")], keys=["fine", key])
    assert not messages.exists()


def test_a_key_has_255_characters() -> None:
    assert messages.enqueue(record.s("x"), key="é" * 255).key == "é" * 255


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c"], "ab", []])
def test_each_signature_has_a_key(keys: Any) -> None:
    with pytest.raises(
        ValueError, match="keys must be a sequence with one for each of 2 signatures"
    ):
        messages.enqueue_many([record.s("x"), record.s("y")], keys=keys)


def test_keys_may_be_a_generator() -> None:
    rows = messages.enqueue_many([record.s("x"), record.s("y")], keys=(f"k{n}" for n in range(2)))
    assert [row.key for row in rows] == ["k0", "k1"]


def test_some_of_many_are_known() -> None:
    known = messages.enqueue(record.s("x"), key="1")
    written = messages.enqueue_many(
        [record.s("y"), record.s("x"), record.s("z")], keys=["2", "1", "3"]
    )
    assert written[1] == known
    assert messages.count() == 3


def test_a_key_twice_in_one_call_is_one_message() -> None:
    first, other, again = messages.enqueue_many(
        [record.s("x"), record.s("y"), record.s("x")], keys=["1", "2", "1"]
    )
    assert first == again != other
    assert messages.count() == 2


@pytest.mark.parametrize("known", [True, False])
def test_many_are_written_all_or_none(known: bool) -> None:
    if known:
        messages.enqueue(record.s("x"), key="1")
    before = set(messages.all())
    keys = ["2", "1", "3"] if known else ["1", "2", "1"]
    with pytest.raises(DuplicateKey, match="Nothing was written"):
        messages.enqueue_many([record.s("a"), record.s("b"), record.s("c")], keys=keys)
    # The transaction may go on and commit.
    assert set(messages.all()) == before


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("commits", [True, False])
def test_a_concurrent_twin_waits_and_then_gets_the_first(commits: bool) -> None:
    result: list[OutboxMessage] = []
    backends: list[int] = []

    def twin() -> None:
        try:
            with transaction.atomic():
                backends.append(connection.connection.info.backend_pid)
                result.append(messages.enqueue(record.s("x"), key="k"))
        finally:
            connection.close()

    thread = threading.Thread(target=twin)
    with transaction.atomic():
        first = messages.enqueue(record.s("x"), key="k")
        thread.start()
        wait_for(lambda: backends and is_waiting(backends[0]), message="the twin does not wait")
        if not commits:
            transaction.set_rollback(True)
    thread.join(30)
    assert not thread.is_alive()
    (second,) = result
    assert (second == first) is commits
    assert messages.get() == second


def is_waiting(backend: int) -> bool:
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [backend])
        return bool(cursor.fetchone()[0])

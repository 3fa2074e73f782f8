"""What becomes of a message's task in a real worker is on the message's row."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from idempotency.models import IdempotencyKey
from outbox.models import OutboxMessage
from outbox.relay import Relay, RelayResult
from sample_project.servers import children_of
from tests.helpers import wait_for
from tests.locks import held_lock
from tests.project import tasks
from tests.project.models import Effect

if TYPE_CHECKING:
    from sample_project.processes import Process
    from tests.integration.outbox.dumps import Dumps

# A receipt knows nothing of brokers: one is enough.
pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.parametrize("shared_broker", ["valkey"], indirect=True),
]

record: Any = tasks.record
record_once: Any = tasks.record_once
record_once_per_label: Any = tasks.record_once_per_label
record_once_at_retry: Any = tasks.record_once_at_retry
fail: Any = tasks.fail
fail_guarded: Any = tasks.fail_guarded
reject_guarded: Any = tasks.reject_guarded
messages = OutboxMessage.objects


def enqueue(signature: Any, using: str = "default") -> OutboxMessage:
    with transaction.atomic(using=using):
        message: OutboxMessage = messages.enqueue(signature, using=using)
        return message


def publish_again(message: OutboxMessage, relay: Relay) -> None:
    messages.filter(pk=message.pk).update(
        status="pending", available_at=Now(), published_at=None, executed_at=None
    )
    assert relay.run_once() == RelayResult(published=1)


def wait_until(message: OutboxMessage, status: str, worker: Process) -> None:
    def arrived() -> bool:
        message.refresh_from_db()
        return message.status == status

    wait_for(
        arrived, message=lambda: f"{message.status} {message.errors} {worker.output()[-2000:]}"
    )


def wait_for_waiter(worker: Process) -> None:
    def waits() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            )
            return bool(cursor.fetchone()[0])

    wait_for(waits, message=worker.output)


def test_an_execution_and_its_receipt_are_one_transaction(
    relay: Relay, shared_worker: Process
) -> None:
    with held_lock(11):
        message = enqueue(record_once.s("x", lock=11))
        relay.run_once()
        wait_for_waiter(shared_worker)
        message.refresh_from_db()
        assert (message.status, message.executed_at) == ("published", None)
        assert not Effect.objects.exists()
    wait_until(message, "executed", shared_worker)
    assert Effect.objects.count() == 1
    assert IdempotencyKey.objects.get().message_id == str(message.pk)


def test_what_fails_at_its_commit_has_no_receipt(relay: Relay, shared_worker: Process) -> None:
    """Effect, key and receipt are written by then, and go together."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE EXCEPTION 'refused at commit'; END$$"
        )
        cursor.execute(
            "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON project_effect "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    try:
        message = enqueue(record_once.s("x"))
        relay.run_once()
        wait_until(message, "failed", shared_worker)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION refuse CASCADE")
    assert message.executed_at is None
    assert "refused at commit" in message.errors[0]["error"]
    assert not Effect.objects.exists()
    assert not IdempotencyKey.objects.exists()


def test_a_duplicate_writes_the_receipt_again(relay: Relay, shared_worker: Process) -> None:
    message = enqueue(record_once.s("x"))
    relay.run_once()
    wait_until(message, "executed", shared_worker)
    publish_again(message, relay)
    wait_until(message, "executed", shared_worker)
    assert Effect.objects.count() == 1


def test_a_second_message_with_the_same_business_key_ends_too(
    relay: Relay, shared_worker: Process
) -> None:
    first, second = enqueue(record_once_per_label.s("x")), enqueue(record_once_per_label.s("x"))
    assert relay.run_once() == RelayResult(published=2)
    wait_until(first, "executed", shared_worker)
    wait_until(second, "executed", shared_worker)
    assert Effect.objects.count() == 1


def test_an_unguarded_task_has_no_receipt(relay: Relay, shared_worker: Process) -> None:
    message = enqueue(record.s("x"))
    relay.run_once()
    wait_for(Effect.objects.exists, message=shared_worker.output)
    message.refresh_from_db()
    assert (message.status, message.awaits_receipt) == ("published", False)


@pytest.mark.parametrize(("task", "effects"), [(fail, 1), (fail_guarded, 0)])
def test_a_final_failure_is_recorded_with_its_error(
    task: Any, effects: int, relay: Relay, shared_worker: Process
) -> None:
    message = enqueue(task.s("boom"))
    relay.run_once()
    wait_until(message, "failed", shared_worker)
    assert [error["error"] for error in message.errors] == ["RuntimeError: boom"]
    assert Effect.objects.count() == effects


def test_a_failure_is_recorded_on_the_alias_of_the_message(
    shared_worker: Process, relay: Relay
) -> None:
    message = enqueue(fail.s("boom"), using="other")
    other = Relay("other")
    try:
        assert other.run_once() == RelayResult(published=1)
    finally:
        other.close()
    wait_for(
        messages.using("other").filter(pk=message.pk, status="failed").exists,
        message=shared_worker.output,
    )


def test_a_retry_is_not_a_failure(relay: Relay, shared_worker: Process) -> None:
    message = enqueue(record_once_at_retry.s("x"))
    relay.run_once()
    wait_until(message, "executed", shared_worker)
    assert message.errors == []
    assert Effect.objects.count() == 1


def test_a_rejected_message_has_not_failed_and_comes_again(
    relay: Relay, shared_worker: Process, settings: Any
) -> None:
    settings.OUTBOX_REDELIVER_AFTER = 0.5
    message = enqueue(reject_guarded.s("x"))
    rejected = f"reject_guarded[{message.pk}] reject requeue=False"
    relay.run_once()
    wait_for(lambda: rejected in shared_worker.output(), message=shared_worker.output)
    wait_for(messages.due().exists, message=shared_worker.output)
    assert relay.run_once() == RelayResult(published=1)
    wait_for(lambda: shared_worker.output().count(rejected) == 2, message=shared_worker.output)
    message.refresh_from_db()
    assert (message.status, message.errors) == ("published", [])
    assert Effect.objects.count() == 0


def test_a_failed_message_is_retried_under_its_id(relay: Relay, shared_worker: Process) -> None:
    message = enqueue(fail_guarded.s("boom"))
    relay.run_once()
    wait_until(message, "failed", shared_worker)
    assert messages.retry() == 1
    relay.run_once()
    wait_for(lambda: len(messages.get(pk=message.pk).errors) == 2, message=shared_worker.output)
    wait_until(message, "failed", shared_worker)


def test_a_process_that_is_killed_is_not_a_failure(relay: Relay, shared_worker: Process) -> None:
    with held_lock(12):
        message = enqueue(record_once.s("x", lock=12))
        relay.run_once()
        wait_for_waiter(shared_worker)
        (process,) = children_of(shared_worker.pid)
        os.kill(process, signal.SIGKILL)
    wait_until(message, "executed", shared_worker)
    assert message.errors == []
    assert Effect.objects.count() == 1


def test_what_no_outbox_sent_is_nobodys_receipt(relay: Relay, shared_worker: Process) -> None:
    record_once.delay("x")
    fail.delay("y")
    wait_for(lambda: Effect.objects.count() == 2, message=shared_worker.output)
    assert not messages.exists()


def test_what_a_guarded_task_enqueues_commits_with_it(
    relay: Relay, shared_worker: Process, dumps: Dumps
) -> None:
    for rolls_back in (True, False):
        enqueue(tasks.call_show_relayed.s(rolls_back))
        assert relay.run_once() == RelayResult(published=1)
        if rolls_back:
            enqueue(record.s("barrier"))
            relay.run_once()
            wait_for(Effect.objects.exists, message=shared_worker.output)
            assert messages.count() == 2
    wait_for(lambda: messages.count() == 5, message=shared_worker.output)
    assert relay.run_once() == RelayResult(published=2)
    seen = dumps.wait(3, shared_worker)
    assert sorted(request["args"][-1] for request in seen) == ["'child'", "'first'", "'second'"]

"""OutboxTask in a real worker: what Celery publishes itself is left to Celery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import chain

from outbox.models import OutboxMessage
from outbox.relay import Relay, RelayResult
from tests.helpers import wait_for
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_project.processes import Process
    from tests.integration.outbox.dumps import Dumps

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize("shared_broker", ["rabbitmq"], indirect=True),
]

show: Any = tasks.show
show_relayed: Any = tasks.show_relayed
show_relayed_at_retry: Any = tasks.show_relayed_at_retry
show_relayed_at_autoretry: Any = tasks.show_relayed_at_autoretry
messages = OutboxMessage.objects


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (show_relayed.delay, 1),
        (show_relayed_at_retry.delay, 1),
        (show_relayed_at_autoretry.delay, 1),
        (lambda: show_relayed.apply_async(link=show_relayed.si("link")), 2),
        (
            lambda: show_relayed.apply_async(
                link=[show_relayed.si("1"), chain(show_relayed.si("2"), show_relayed.si("3"))]
            ),
            4,
        ),
        (chain(show_relayed.si("1"), show_relayed.si("2"), show_relayed.si("3")).delay, 3),
        (chain(show_relayed.si("only")).delay, 1),
        ((show_relayed.si("1") | show_relayed.si("2").set(link=show_relayed.si("3"))).delay, 3),
    ],
    ids=["call", "retry", "autoretry", "link", "links", "chain", "chain of one", "chain and link"],
)
def test_one_message_and_celery_does_the_rest(
    call: Callable[[], Any], number: int, relay: Relay, shared_worker: Process, dumps: Dumps
) -> None:
    call()
    message = messages.get()
    assert relay.run_once() == RelayResult(published=1)
    seen = dumps.wait(number, shared_worker)
    assert len({request["id"] for request in seen}) == number
    assert repr(str(message.pk)) in {request["id"] for request in seen}
    assert messages.get().errors == []


def test_the_result_that_a_call_returns_is_the_tasks(
    relay: Relay, shared_worker: Process, dumps: Dumps
) -> None:
    result = show_relayed.delay()
    relay.run_once()
    (seen,) = dumps.wait(1, shared_worker)
    assert seen["id"] == repr(result.id)


def test_a_callback_of_a_plain_message_runs(
    relay: Relay, shared_worker: Process, dumps: Dumps
) -> None:
    """Its id is not frozen, so to the task it is a call like any other."""
    show.apply_async(link=show_relayed.si("callback"))

    def arrived() -> bool:
        relay.run_once()
        return len(dumps.read()) == 2

    wait_for(arrived, message=shared_worker.output)
    callback = next(request for request in dumps.read() if "relayed" in request["task"])
    parent = next(request for request in dumps.read() if "relayed" not in request["task"])
    assert (callback["parent_id"], callback["root_id"]) == (parent["id"], parent["id"])
    dumps.clear()

"""The diagram of docs/lifecycle.md, walked at random: no move that it lacks, and always an end."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from idempotency.testing import travel
from outbox.exceptions import BrokerUnavailable
from outbox.models import OutboxMessage
from outbox.outgoing import Outgoing, Published
from outbox.querysets import PURGEABLE
from outbox.relay import Relay
from tests.project import tasks

DOCUMENT = Path(__file__).parents[3] / "docs" / "lifecycle.md"
EDGES = set(re.findall(r"^    (\S+) --> (\S+):", DOCUMENT.read_text(), re.MULTILINE))

TASKS: dict[bool, Any] = {False: tasks.record, True: tasks.record_once}
messages = OutboxMessage.objects

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]

EXAMPLES = settings(
    max_examples=int(os.environ.get("N", "25")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

verdicts = st.lists(
    st.sampled_from(["confirmed", "confirmed", "refused", "refused for good", "no word"]),
    min_size=1,
    max_size=4,
)
choices = st.integers(min_value=0, max_value=9)


def is_over(row: OutboxMessage) -> bool:
    """Whether the next message of its ordering key has its turn."""
    states = {"executed", "expired", "discarded"}
    return row.status in (states if row.awaits_receipt else states | {"published", "failed"})


class Broker:
    """In a publisher's place: it says of each message what it is told to, and may forget."""

    def __init__(self) -> None:
        self.verdicts = ["confirmed"]
        self.queue: list[UUID] = []

    def publish(self, batch: Sequence[Outgoing], timeout: float) -> Published:
        result = Published(batch)
        for place, message in enumerate(batch):
            verdict = self.verdicts[place % len(self.verdicts)]
            if verdict == "no word":
                result.unavailable = "it went away"
                break
            if verdict == "confirmed":
                self.queue.append(message.id)
                result.confirmed.add(message.id)
            else:
                result.refuse(message.id, verdict, permanent=verdict == "refused for good")
        return result

    def connect(self) -> None: ...

    def await_confirms(self, result: Published) -> None: ...

    def is_empty(self, queue: str) -> bool:
        return not self.queue

    def close(self) -> None: ...


class Outbox(RuleBasedStateMachine):
    """What producers, relays, workers and people do to one table, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.example = transaction.atomic()
        self.example.__enter__()
        self.broker = Broker()
        self.delivered: list[UUID] = []
        self.states: dict[UUID, str] = {}
        self.retried: set[UUID] = set()

    @rule(
        guarded=st.booleans(),
        ordering_key=st.sampled_from(["", "a", "b"]),
        options=st.sampled_from([{}, {}, {"expires": 1800}, {"countdown": 1800}]),
    )
    def enqueue(self, guarded: bool, ordering_key: str, options: dict[str, Any]) -> None:
        signature = TASKS[guarded].s("x").set(**options)
        with transaction.atomic():
            row = messages.enqueue(signature, ordering_key=ordering_key)
        self.states[row.pk] = "[*]"

    @rule(verdicts=verdicts, killed=st.booleans())
    def relay(self, verdicts: list[str], killed: bool) -> None:
        """One batch of a new relay, which may be killed before it commits what it has done."""
        self.broker.verdicts = verdicts
        published = len(self.broker.queue)
        with transaction.atomic():
            self._run_relay()
            transaction.set_rollback(killed)
        for id in self.broker.queue[published:]:
            self._check_turn(id)

    @rule()
    def broker_forgets(self) -> None:
        self.broker.queue.clear()

    @rule(choice=choices, ends=st.booleans(), again=st.booleans())
    def deliver(self, choice: int, ends: bool, again: bool) -> None:
        """A worker's task commits, or Celery gives it up; the broker may deliver it once more."""
        queue = self.broker.queue
        if not queue:
            return
        id = queue[choice % len(queue)]
        if not again:
            queue.remove(id)
        if ends:
            messages.mark_executed(id)
        else:
            messages.mark_failed(id, "given up")

    @rule(older_than_window=st.booleans())
    def retry(self, older_than_window: bool) -> None:
        before = set(messages.pending().values_list("pk", flat=True))
        messages.all().retry(older_than_window=older_than_window)
        self.retried |= set(messages.pending().values_list("pk", flat=True)) - before

    @rule(choice=choices)
    def discard(self, choice: int) -> None:
        ids = sorted(self.states)
        if ids:
            messages.filter(pk=ids[choice % len(ids)]).discard()

    @rule(states=st.sets(st.sampled_from(PURGEABLE)))
    def purge(self, states: set[str]) -> None:
        messages.all().purge(timedelta(days=1), states=states)

    @rule(hours=st.sampled_from([1, 24, 24 * 8]))
    def time_passes(self, hours: int) -> None:
        travel(timedelta(hours=hours))

    @invariant()
    def every_move_is_in_the_diagram(self) -> None:
        now = dict(messages.values_list("pk", "status"))
        for id, before in self.states.items():
            after = now.get(id, "[*]")
            moved = (before, after) in EDGES or ("any", after) in EDGES
            assert moved or after == before, f"{before} became {after}"
        self.states = {id: now[id] for id in self.states if id in now}

    @invariant()
    def a_key_has_one_open_message_at_most(self) -> None:
        for key in ("a", "b"):
            assert messages.open_of(key).count() <= 1

    def teardown(self) -> None:
        """Whatever has happened: with a sound broker and a person who retries, all is over."""
        try:
            self._come_to_an_end()
        finally:
            transaction.set_rollback(True)
            self.example.__exit__(None, None, None)

    def _come_to_an_end(self) -> None:
        self.broker.verdicts = ["confirmed"]
        for _ in range(3 * len(self.states) + 3):
            self.retry(older_than_window=True)
            self.every_move_is_in_the_diagram()
            travel(timedelta(days=30))
            self._run_relay()
            self.every_move_is_in_the_diagram()
            while self.broker.queue:
                messages.mark_executed(self.broker.queue.pop())
            self.every_move_is_in_the_diagram()
            if not (left := [row for row in messages.all() if not is_over(row)]):
                return
        pytest.fail(f"{[(row, row.status) for row in left]} for ever")

    def _run_relay(self) -> None:
        with closing(Relay()) as relay, suppress(BrokerUnavailable):
            relay.publisher = self.broker  # type: ignore[assignment]
            relay.run_once()

    def _check_turn(self, id: UUID) -> None:
        """Before a message comes what is over, or was retried when its turn was past."""
        row = messages.filter(pk=id).exclude(ordering_key="").first()
        if row is None:
            return
        earlier = messages.filter(ordering_key=row.ordering_key, sequence__lt=row.sequence)
        for one in earlier:
            assert is_over(one) or (one.status == "pending" and one.pk in self.retried)


def test_any_sequence_of_moves_is_in_the_diagram_and_comes_to_an_end() -> None:
    run_state_machine_as_test(Outbox, settings=EXAMPLES)

"""Messages on their way to the broker, and what became of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID


class Outgoing(NamedTuple):
    """A message on its way: what the row holds, with what is made at the publish."""

    id: UUID
    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    exchange: str
    routing_key: str
    queue: str
    expiration: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The error of one message. ``permanent``: another attempt would end the same way."""

    error: str
    permanent: bool = False


@dataclass(slots=True)
class Published:
    """What became of a batch. A message in neither collection is still to be published.

    ``deadline``: by the monotonic clock, in seconds. ``unavailable`` says why the broker took no
    more, when it did not.
    """

    messages: Sequence[Outgoing] = ()
    deadline: float = math.inf
    confirmed: set[UUID] = field(default_factory=set)
    refused: dict[UUID, Refused] = field(default_factory=dict)
    unavailable: str = ""
    # Sent without a word from the broker so far.
    in_doubt: dict[UUID, Outgoing] = field(default_factory=dict)
    # The connection on which they went out. On another one nobody waits for their confirms.
    link: object | None = None

    def confirm(self, id: UUID) -> None:
        del self.in_doubt[id]
        self.confirmed.add(id)

    def refuse(self, id: UUID, error: str, permanent: bool = False) -> None:
        self.in_doubt.pop(id, None)
        self.refused[id] = Refused(error, permanent)

    def unfinished(self) -> list[Outgoing]:
        if len(self.confirmed) == len(self.messages):
            return []
        ended = self.confirmed | self.refused.keys()
        return [message for message in self.messages if message.id not in ended]

"""What the gateway has charged and sent: in memory, shared by the server's threads."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from uuid import uuid4


class KeyReused(Exception):
    """The key was first used for another charge."""


@dataclass(frozen=True, slots=True)
class Charge:
    """Money that was taken. ``amount`` is in cents, ``reference`` is the shop's."""

    reference: str
    amount: int
    currency: str
    id: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True, slots=True)
class Notification:
    recipient: str
    text: str


class Ledger:
    """Charges once per key. A charge without a key is a charge each time."""

    def __init__(self) -> None:
        self.charges: list[Charge] = []
        self.notifications: list[Notification] = []
        self.recognised = 0
        self._known: dict[str, Charge] = {}
        self._lock = threading.Lock()

    def charge(self, charge: Charge, key: str | None) -> Charge:
        """Charge, or return what was charged under the key. Raises ``KeyReused``."""
        with self._lock:
            known = self._known.get(key) if key else None
            if known is None:
                self.charges.append(charge)
                if key:
                    self._known[key] = charge
                return charge
            if asdict(known) | {"id": ""} != asdict(charge) | {"id": ""}:
                raise KeyReused(f"The key was first used for {known.reference!r}.")
            self.recognised += 1
            return known

    def notify(self, notification: Notification) -> None:
        with self._lock:
            self.notifications.append(notification)

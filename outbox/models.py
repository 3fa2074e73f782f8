"""The outbox's table. docs/lifecycle.md draws the states and who moves a message between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from outbox import ids, wire
from outbox.manager import OutboxManager
from outbox.ordering_querysets import OPEN


class ClockTimestamp(models.Func):
    """PostgreSQL's clock, which runs on inside a transaction, where ``now()`` stands still."""

    function = "clock_timestamp"
    output_field = models.DateTimeField()


if TYPE_CHECKING:
    TextField = models.TextField[dict[str, Any], dict[str, Any]]
else:
    TextField = models.TextField


class WireJSONField(TextField):
    """JSON text in kombu's encoding, so datetime, bytes, Decimal and UUID come back as they were.

    Text, because ``jsonb`` rewrites numbers and refuses ``\\u0000``: the wire needs it unchanged.
    """

    def from_db_value(self, value: str | None, *args: object) -> dict[str, Any] | None:
        return None if value is None else wire.json_loads(value)

    def get_prep_value(self, value: Any) -> str | None:
        return None if value is None else wire.json_dumps(value)

    def value_to_string(self, obj: models.Model) -> str:
        return wire.json_dumps(self.value_from_object(obj))

    def to_python(self, value: Any) -> Any:
        return wire.json_loads(value) if isinstance(value, str) else value


class OutboxMessage(models.Model):
    """A task call that is published if, and only if, the transaction that wrote it commits.

    The id is the Celery task id, the message's id on the wire and the default idempotency key.
    """

    class Status(models.TextChoices):
        # Committed; a relay publishes it when available_at comes.
        PENDING = "pending", _("pending")
        # The broker has confirmed it.
        PUBLISHED = "published", _("published")
        # Its guarded task has committed, and wrote this in the same transaction.
        EXECUTED = "executed", _("executed")
        # Celery gave it up: retries are exhausted, or the error was final.
        FAILED = "failed", _("failed")
        # expires_at passed before it was published, or before its receipt came.
        EXPIRED = "expired", _("expired")
        # The broker refused this message, and not all messages, too often.
        DEAD = "dead", _("dead")
        # A person decided that it shall not be published.
        DISCARDED = "discarded", _("discarded")

    id = models.UUIDField(primary_key=True, default=ids.message_id, editable=False)
    task = models.CharField(max_length=255)
    status = models.CharField(max_length=9, choices=Status, default=Status.PENDING)
    exchange = models.CharField(max_length=255, blank=True, default="")
    routing_key = models.CharField(max_length=255, blank=True, default="")
    queue = models.CharField(
        max_length=255,
        blank=True,
        default="",
        help_text=_("The queue that the relay declares before it publishes."),
    )
    headers = WireJSONField(default=dict)
    properties = WireJSONField(default=dict)
    body = models.BinaryField()
    key = models.CharField(
        max_length=255,
        blank=True,
        default="",
        help_text=_("The caller's name for the intent: at most one message per task and key."),
    )
    ordering_key = models.CharField(
        max_length=255,
        blank=True,
        default="",
        db_default="",
        db_collation="C",
        help_text=_("Messages of one key are executed one at a time, in the order of commits."),
    )
    sequence = models.PositiveBigIntegerField(
        null=True, blank=True, help_text=_("Its place among the messages of its ordering key.")
    )
    blocked = models.BooleanField(
        default=False,
        db_default=False,
        help_text=_("Pending, and waiting until an earlier message of its key is over."),
    )
    available_at = models.DateTimeField(
        null=True,
        blank=True,
        db_default=ClockTimestamp(),
        help_text=_("When a relay should next look at it. Empty: there is nothing to do."),
    )
    expires_at = models.DateTimeField(null=True, blank=True)
    awaits_receipt = models.BooleanField(
        default=False,
        help_text=_("Its task is guarded on this database, so its execution will be recorded."),
    )
    attempts = models.PositiveIntegerField(
        default=0, help_text=_("How often the broker refused it; outages do not count.")
    )
    redeliveries = models.PositiveIntegerField(
        default=0,
        db_default=0,
        help_text=_("How often it was published again because its receipt had not come."),
    )
    errors = models.JSONField(default=list, blank=True)
    created_at = models.DateTimeField(db_default=ClockTimestamp())
    published_at = models.DateTimeField(null=True, blank=True)
    executed_at = models.DateTimeField(null=True, blank=True)

    objects: ClassVar[OutboxManager] = OutboxManager()

    class Meta:
        verbose_name = _("outbox message")
        # Messages are enqueued, moved and purged; nobody adds, changes or deletes one by hand.
        default_permissions = ("view",)
        permissions: ClassVar = [
            ("retry_outboxmessage", _("Can retry outbox messages")),
            ("retry_late_outboxmessage", _("Can retry outbox messages older than the window")),
            ("discard_outboxmessage", _("Can discard outbox messages")),
        ]
        indexes: ClassVar = [
            # Serves every claim, in the claim's order, and holds nothing that is finished.
            models.Index(
                "available_at",
                "id",
                name="outbox_due",
                condition=Q(available_at__isnull=False, blocked=False),
            ),
            # The admin's pages: newest first, the newest of one state, the newest of one task.
            models.Index("created_at", "id", name="outbox_created"),
            models.Index("status", "created_at", "id", name="outbox_status_created"),
            models.Index("task", "created_at", "id", name="outbox_task_created"),
            # Holds only what is under way.
            models.Index(
                "created_at",
                "id",
                name="outbox_receipt_outstanding",
                condition=Q(status="published", awaits_receipt=True),
            ),
            # Hold nothing of a message without an ordering key.
            models.Index(
                "ordering_key", "sequence", name="outbox_ordering", condition=~Q(ordering_key="")
            ),
            models.Index(
                "ordering_key", "sequence", name="outbox_blocked", condition=Q(blocked=True)
            ),
            # Empty, unless something is wrong.
            models.Index(
                "created_at",
                "id",
                name="outbox_stuck",
                condition=Q(status="published", awaits_receipt=True, available_at__isnull=True),
            ),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["key", "task"], name="outbox_key_task", condition=~Q(key="")
            ),
            models.UniqueConstraint(
                fields=["ordering_key"], name="outbox_one_open_per_key", condition=OPEN
            ),
            models.CheckConstraint(
                name="outbox_blocked_ordered",
                condition=Q(blocked=False) | (Q(status="pending") & ~Q(ordering_key="")),
            ),
            models.CheckConstraint(
                name="outbox_ordered_sequence",
                condition=Q(ordering_key="", sequence__isnull=True)
                | (~Q(ordering_key="") & Q(sequence__isnull=False)),
            ),
            models.CheckConstraint(
                name="outbox_status_times",
                condition=(
                    Q(
                        status="pending",
                        available_at__isnull=False,
                        published_at__isnull=True,
                        executed_at__isnull=True,
                    )
                    | Q(status="published", published_at__isnull=False, executed_at__isnull=True)
                    | Q(
                        status="executed",
                        available_at__isnull=True,
                        published_at__isnull=False,
                        executed_at__isnull=False,
                    )
                    | Q(
                        status="failed",
                        available_at__isnull=True,
                        published_at__isnull=False,
                        executed_at__isnull=True,
                    )
                    | Q(status="expired", available_at__isnull=True, executed_at__isnull=True)
                    | Q(
                        status="dead",
                        available_at__isnull=True,
                        published_at__isnull=True,
                        executed_at__isnull=True,
                    )
                    | Q(status="discarded", available_at__isnull=True, executed_at__isnull=True)
                ),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.task} {self.id}"

    def arguments(self, accept: list[str]) -> tuple[Any, Any]:
        """Return (args, kwargs), read with a serializer whose content type is in ``accept``.

        Raises ``kombu.exceptions.ContentDisallowed`` for another content type.
        """
        args, kwargs, _ = wire.decode(bytes(self.body), self.headers, self.properties, accept)
        return args, kwargs


class OrderingKey(models.Model):
    """A key in whose order messages are executed. Its row is the lock that gives the turns."""

    key = models.CharField(primary_key=True, max_length=255, db_collation="C")
    last_sequence = models.PositiveBigIntegerField(default=0)

    class Meta:
        verbose_name = _("ordering key")
        default_permissions = ()

    def __str__(self) -> str:
        return self.key

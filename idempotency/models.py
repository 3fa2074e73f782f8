"""The table of keys: which operations have run, and with what result."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Collate
from django.utils.translation import gettext_lazy as _

from idempotency.querysets import IdempotencyKeyManager


class IdempotencyKey(models.Model):
    """An operation that has run, under the key that recognises its duplicates.

    Atomic mode writes a row when the operation is done, in the operation's own transaction: there
    is none for one that is under way, and none is left behind by one that failed. The other states
    belong to leased mode, which commits its claim first.
    """

    class State(models.TextChoices):
        # It has run; duplicates get its result until expires_at.
        COMPLETED = "completed", _("completed")
        # Whoever has the token executes it. Past lease_expires_at the row is stale: the owner is
        # gone, or too slow, and the next claim decides.
        IN_PROGRESS = "in_progress", _("in progress")
        # An attempt ended without a result; the next claim executes it again.
        FAILED_RETRYABLE = "failed_retryable", _("failed, may be retried")
        # It failed for good; duplicates get its error until expires_at.
        FAILED_TERMINAL = "failed_terminal", _("failed for good")
        # An owner vanished after it may have had its effect. It stays so until it is resolved.
        OUTCOME_UNKNOWN = "outcome_unknown", _("outcome unknown")

    namespace = models.CharField(
        max_length=255, help_text=_("What the key is a key of: a task's or a function's name.")
    )
    scope = models.CharField(
        max_length=255,
        blank=True,
        default="",
        help_text=_("Whose key it is, such as a tenant; others may use the same."),
    )
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(
        max_length=64,
        blank=True,
        default="",
        help_text=_("A digest of the arguments; the same key with others is refused."),
    )
    state = models.CharField(max_length=16, choices=State, default=State.COMPLETED)
    result = models.BinaryField(null=True, help_text=_("As idempotency.results writes it."))
    message_id = models.CharField(
        max_length=255,
        blank=True,
        default="",
        help_text=_("The Celery request that wrote the row; empty outside a worker."),
    )
    attempt = models.PositiveIntegerField(
        default=1, db_default=1, help_text=_("How often it has been claimed.")
    )
    token = models.UUIDField(
        null=True, help_text=_("Proves that a write comes from the last claim; leased mode only.")
    )
    owner = models.CharField(
        max_length=255,
        blank=True,
        default="",
        db_default="",
        help_text=_("Host, process and message of the last claim."),
    )
    lease_expires_at = models.DateTimeField(
        null=True, help_text=_("From then on the claim counts as stale.")
    )
    checkpoint = models.BinaryField(null=True, help_text=_("The results of the steps so far."))
    error = models.TextField(
        blank=True,
        default="",
        db_default="",
        help_text=_("Class and message of what ended the last attempt."),
    )
    created_at = models.DateTimeField(help_text=_("When the operation began."))
    finished_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(
        null=True, help_text=_("From then on the key counts as absent.")
    )

    objects: ClassVar[IdempotencyKeyManager] = IdempotencyKeyManager()

    class Meta:
        verbose_name = _("idempotency key")
        permissions: ClassVar = [
            ("resolve_idempotencykey", _("Can resolve idempotency keys")),
            ("release_idempotencykey", _("Can release idempotency keys")),
        ]
        indexes: ClassVar = [
            models.Index("expires_at", name="idempotency_expires"),
            # The admin's page of one namespace, newest first. In a collation of its own, so that no
            # claim can use it: with old statistics the planner would, and read the namespace's
            # every row.
            models.Index(Collate("namespace", "C"), "id", name="idempotency_namespace"),
            # What needs a person, or soon may; nearly every row is completed and not in it.
            models.Index(
                "state", "id", name="idempotency_unfinished", condition=~Q(state="completed")
            ),
        ]
        constraints: ClassVar = [
            # The key comes first: it alone is what people search for, and ids made in order of
            # time keep the index local.
            models.UniqueConstraint(
                fields=["key", "namespace", "scope"], name="idempotency_key_namespace_scope"
            ),
            models.CheckConstraint(
                name="idempotency_state_times",
                condition=Q(
                    state="completed",
                    result__isnull=False,
                    finished_at__isnull=False,
                    expires_at__isnull=False,
                    lease_expires_at__isnull=True,
                )
                | Q(
                    state="in_progress",
                    token__isnull=False,
                    lease_expires_at__isnull=False,
                    finished_at__isnull=True,
                )
                | Q(
                    state__in=["failed_retryable", "failed_terminal"],
                    finished_at__isnull=False,
                    expires_at__isnull=False,
                    lease_expires_at__isnull=True,
                )
                | Q(
                    # It does not end by itself.
                    state="outcome_unknown",
                    finished_at__isnull=False,
                    expires_at__isnull=True,
                    lease_expires_at__isnull=True,
                ),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.namespace} {self.key}"

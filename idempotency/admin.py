"""The keys in Django's admin: which operations have run, and what needs a person.

Results, stored responses and steps are not shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models.functions import Collate, Now
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from idempotency.listing import ReadOnlyAdmin
from idempotency.models import IdempotencyKey
from idempotency.moments import age, distance, moment
from idempotency.moves import (
    RELEASE,
    RESOLVE_COMPLETED,
    RESOLVE_FAILED,
    RESOLVE_RETRY,
    Move,
)

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest
    from django.utils.safestring import SafeString

MESSAGE_PAGE = "outbox_outboxmessage_change"


class StateFilter(admin.SimpleListFilter):
    title = gettext_lazy("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return IdempotencyKey.State.choices

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[IdempotencyKey]
    ) -> QuerySet[IdempotencyKey]:
        if not self.value():
            return queryset
        # The address bar may say anything, such as a NUL, which PostgreSQL does not take.
        known = self.value() in IdempotencyKey.State.values
        return queryset.filter(state=self.value()) if known else queryset.none()


class ExpiryFilter(admin.SimpleListFilter):
    """Whether duplicates are still recognised. The list is then in the order of the expiry."""

    title = gettext_lazy("expiry")
    parameter_name = "expiry"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [
            ("ahead", gettext_lazy("recognises duplicates")),
            ("past", gettext_lazy("expired")),
        ]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[IdempotencyKey]
    ) -> QuerySet[IdempotencyKey]:
        if self.value() == "ahead":
            return queryset.filter(expires_at__gt=Now())
        if self.value() == "past":
            return queryset.filter(expires_at__lte=Now())
        return queryset


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(ReadOnlyAdmin):
    """List, search and look at keys; resolve and release those that need a person."""

    list_display = ("key", "namespace", "scope", "state", "age", "expires_in", "message")
    list_deferred = ("result", "checkpoint", "error", "fingerprint")
    list_filter = (StateFilter, ExpiryFilter)
    actions = ("resolve_completed", "resolve_failed", "resolve_retry", "release")
    sortable_by = ("age",)
    search_fields = ("key",)  # see get_search_results
    search_help_text = gettext_lazy("A key, or a part of a namespace")
    fieldsets = (
        (None, {"fields": ("key", "namespace", "scope", "state", "message", "fingerprint")}),
        (gettext_lazy("Result"), {"fields": ("masked_result", "masked_checkpoint", "error")}),
        (gettext_lazy("Claim"), {"fields": ("attempt", "owner", "lease_expires")}),
        (gettext_lazy("Times"), {"fields": ("created", "finished", "expires")}),
    )
    readonly_fields = (
        "message",
        "masked_result",
        "masked_checkpoint",
        "lease_expires",
        "created",
        "finished",
        "expires",
    )

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        # Expired keys are the oldest: by id, the database would walk past all the others first.
        if request.GET.get(ExpiryFilter.parameter_name):
            return ("-expires_at", "-id")
        return ("-id",)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[IdempotencyKey], search_term: str
    ) -> tuple[QuerySet[IdempotencyKey], bool]:
        """Take the term for a key, else for a part of a namespace.

        One after the other, because "or" would have the database read the table.
        """
        term = search_term.strip()
        if not term:
            return queryset, False
        if queryset.filter(key=term).exists():
            return queryset.filter(key=term), False
        names = IdempotencyKey.objects.using(queryset.db).namespaces()
        found = [term] if term in names else [n for n in names if term.lower() in n.lower()]
        return queryset.alias(indexed=Collate("namespace", "C")).filter(indexed__in=found), False

    def has_resolve_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "resolve")

    def has_release_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "release")

    @admin.action(
        description=gettext_lazy("Resolve: they took effect (with no result)"),
        permissions=["resolve"],
    )
    def resolve_completed(self, request: HttpRequest, chosen: QuerySet[IdempotencyKey]) -> None:
        self._move(request, RESOLVE_COMPLETED, chosen)

    @admin.action(
        description=gettext_lazy("Resolve: they failed for good"), permissions=["resolve"]
    )
    def resolve_failed(self, request: HttpRequest, chosen: QuerySet[IdempotencyKey]) -> None:
        self._move(request, RESOLVE_FAILED, chosen)

    @admin.action(
        description=gettext_lazy("Resolve: they took no effect and may be executed again"),
        permissions=["resolve"],
    )
    def resolve_retry(self, request: HttpRequest, chosen: QuerySet[IdempotencyKey]) -> None:
        self._move(request, RESOLVE_RETRY, chosen)

    @admin.action(
        description=gettext_lazy("Release: what failed for good may be executed again"),
        permissions=["release"],
    )
    def release(self, request: HttpRequest, chosen: QuerySet[IdempotencyKey]) -> None:
        self._move(request, RELEASE, chosen)

    def _may(self, request: HttpRequest, what: str) -> bool:
        return request.user.has_perm(f"{self.opts.app_label}.{what}_{self.opts.model_name}")

    def _move(self, request: HttpRequest, move: Move, chosen: QuerySet[IdempotencyKey]) -> None:
        moved, skipped = move.make(chosen, request.user.pk)
        text = ngettext("%(count)d key has changed.", "%(count)d keys have changed.", moved)
        parts = [text % {"count": moved}]
        if skipped:
            text = ngettext(
                "%(count)d was skipped: its state has nothing to change, or its lease is live.",
                "%(count)d were skipped: their state has nothing to change, or their lease is "
                "live.",
                skipped,
            )
            parts.append(text % {"count": skipped})
        level = messages.WARNING if skipped else messages.SUCCESS
        self.message_user(request, " ".join(parts), level)

    @admin.display(description=gettext_lazy("age"), ordering="id")
    def age(self, key: IdempotencyKey) -> SafeString:
        return age(key.created_at)

    @admin.display(description=gettext_lazy("message"))
    def message(self, key: IdempotencyKey) -> SafeString | str:
        """Link to the outbox's page, where there is one; not every Celery request has one."""
        if not key.message_id:
            return self.get_empty_value_display()
        try:
            url = reverse(f"{self.admin_site.name}:{MESSAGE_PAGE}", args=[key.message_id])
        except NoReverseMatch:
            return key.message_id
        return format_html('<a href="{}">{}</a>', url, key.message_id)

    @admin.display(description=gettext_lazy("result"))
    def masked_result(self, key: IdempotencyKey) -> str:
        return _masked(key.result)

    @admin.display(description=gettext_lazy("steps"))
    def masked_checkpoint(self, key: IdempotencyKey) -> str:
        return _masked(key.checkpoint)

    @admin.display(description=gettext_lazy("lease expires"))
    def lease_expires(self, key: IdempotencyKey) -> SafeString:
        return moment(key.lease_expires_at)

    @admin.display(description=gettext_lazy("created"))
    def created(self, key: IdempotencyKey) -> SafeString:
        return moment(key.created_at)

    @admin.display(description=gettext_lazy("finished"))
    def finished(self, key: IdempotencyKey) -> SafeString:
        return moment(key.finished_at)

    @admin.display(description=gettext_lazy("expires"))
    def expires(self, key: IdempotencyKey) -> SafeString:
        return moment(key.expires_at)

    @admin.display(description=gettext_lazy("expires"))
    def expires_in(self, key: IdempotencyKey) -> str:
        return "" if key.expires_at is None else distance(key.expires_at)


def _masked(value: bytes | memoryview | None) -> str:
    """Tell that something is stored, and not what: a response or a result may hold secrets."""
    if value is None:
        return _("none")
    return _("%(size)s bytes, not shown") % {"size": f"{len(value):,}"}

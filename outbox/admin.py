"""The messages in Django's admin: what became of each, and what a person can do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from idempotency.moments import age, distance, duration, short_moment
from outbox.message_page import MessagePage, quiet, receipt_text
from outbox.models import OutboxMessage
from outbox.moves import DISCARD, RETRY, RETRY_LATE, Move, chosen_ids, state_counts

if TYPE_CHECKING:
    from datetime import datetime

    from django.db.models import QuerySet
    from django.http import HttpRequest, HttpResponse
    from django.http.response import HttpResponseBase
    from django.urls import URLPattern
    from django.utils.safestring import SafeString

    from outbox.querysets import OutboxQuerySet

Status = OutboxMessage.Status

LISTED_TO_CONFIRM = 20


class StateFilter(admin.SimpleListFilter):
    title = gettext_lazy("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return Status.choices

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[OutboxMessage]
    ) -> QuerySet[OutboxMessage]:
        if not self.value():
            return queryset
        # The address bar may say anything, such as a NUL, which PostgreSQL does not take.
        known = self.value() in Status.values
        return queryset.filter(status=self.value()) if known else queryset.none()


class ReceiptFilter(admin.SimpleListFilter):
    """Whether a guarded task has told that it ran. Each answer has its index."""

    title = gettext_lazy("receipt")
    parameter_name = "receipt"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [
            ("outstanding", gettext_lazy("outstanding")),
            ("stuck", gettext_lazy("stuck")),
            ("recorded", gettext_lazy("recorded")),
        ]

    def queryset(self, request: HttpRequest, queryset: OutboxQuerySet) -> QuerySet[OutboxMessage]:  # type: ignore[override]
        if self.value() == "stuck":
            return queryset.stuck()
        if self.value() == "outstanding":
            return queryset.filter(status=Status.PUBLISHED, awaits_receipt=True)
        if self.value() == "recorded":
            return queryset.filter(status=Status.EXECUTED)
        return queryset


@admin.register(OutboxMessage)
class OutboxMessageAdmin(MessagePage):
    """List, search, look at, retry and discard. Nothing here edits a message."""

    list_display = ("state", "message", "age", "attempts", "published", "executed")
    list_display_links = ("message",)
    list_deferred = ("body", "headers", "properties", "errors")
    list_filter = (StateFilter, ReceiptFilter)
    date_hierarchy = "created_at"
    ordering = ("-created_at", "-id")
    sortable_by = ("age",)
    search_fields = ("id",)  # see get_search_results
    search_help_text = gettext_lazy("Message id, key, ordering key, or a part of the task's name")
    actions = ("retry", "discard", "retry_late")

    class Media:
        css = {"all": ("outbox/admin.css",)}

    # The list.

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[OutboxMessage], search_term: str
    ) -> tuple[QuerySet[OutboxMessage], bool]:
        """Take the term for an id, a key, an ordering key, or else a part of a task's name.

        One after the other, because "or" would have the database read the table.
        """
        term = search_term.strip()
        if not term:
            return queryset, False
        if (id := _uuid(term)) and queryset.filter(pk=id).exists():
            return queryset.filter(pk=id), False
        keyed = queryset.filter(key=term).exclude(key="")
        if keyed.exists():
            return keyed, False
        ordered = queryset.filter(ordering_key=term).exclude(ordering_key="")
        if ordered.exists():
            return ordered, False
        names = OutboxMessage.objects.using(queryset.db).task_names()
        if term not in names:
            return queryset.filter(task__in=[n for n in names if term.lower() in n.lower()]), False
        return queryset.filter(task=term), False

    @admin.display(description=gettext_lazy("task"))
    def message(self, message: OutboxMessage) -> SafeString:
        return format_html(
            '{}<span class="outbox-id quiet"><span>{}</span><span>{}</span></span>',
            message.task,
            message.pk,
            message.key,
        )

    @admin.display(description=gettext_lazy("age"), ordering="created_at")
    def age(self, message: OutboxMessage) -> SafeString:
        return age(message.created_at)

    @admin.display(description=gettext_lazy("published"))
    def published(self, message: OutboxMessage) -> SafeString:
        if message.blocked:
            return quiet(_("waits for its turn"))
        if message.status == Status.PENDING and message.available_at is not None:
            return quiet(_due(message.available_at))
        return short_moment(message.published_at)

    @admin.display(description=gettext_lazy("executed"))
    def executed(self, message: OutboxMessage) -> SafeString:
        if message.status == Status.PUBLISHED:
            return quiet(receipt_text(message))
        return short_moment(message.executed_at)

    # The page of one message, and what is done from it.

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        message = context["original"]
        row = OutboxMessage.objects.filter(pk=message.pk)
        context["can_retry"] = self.has_retry_permission(request) and row.retryable().exists()
        context["can_discard"] = self.has_discard_permission(request) and row.discardable().exists()
        return super().render_change_form(request, context, *args, **kwargs)

    # Retry and discard.

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self._may(request, RETRY)

    def has_retry_late_permission(self, request: HttpRequest) -> bool:
        return self._may(request, RETRY_LATE)

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return self._may(request, DISCARD)

    @admin.action(description=gettext_lazy("Retry selected messages"), permissions=["retry"])
    def retry(self, request: HttpRequest, chosen: QuerySet[OutboxMessage]) -> None:
        self._move(request, RETRY, chosen)

    @admin.action(
        description=gettext_lazy("Retry although older than the window"),
        permissions=["retry_late"],
    )
    def retry_late(
        self, request: HttpRequest, chosen: QuerySet[OutboxMessage]
    ) -> HttpResponseBase | None:
        return self._ask_and_move(request, RETRY_LATE, chosen)

    @admin.action(description=gettext_lazy("Discard selected messages"), permissions=["discard"])
    def discard(
        self, request: HttpRequest, chosen: QuerySet[OutboxMessage]
    ) -> HttpResponseBase | None:
        return self._ask_and_move(request, DISCARD, chosen)

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("<path:object_id>/retry/", wrap(self.retry_view), name=self._name("retry")),
            path("<path:object_id>/discard/", wrap(self.discard_view), name=self._name("discard")),
            *super().get_urls(),
        ]

    def retry_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """The detail page's button."""
        chosen = self._chosen(request, object_id, RETRY)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        self._move(request, RETRY, chosen)
        return HttpResponseRedirect(self._page_of(object_id))

    def discard_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """The detail page's button: asks, then discards."""
        chosen = self._chosen(request, object_id, DISCARD)
        if request.method != "POST":
            return self._confirm(request, DISCARD, chosen, self._page_of(object_id))
        self._move(request, DISCARD, chosen)
        return HttpResponseRedirect(self._page_of(object_id))

    def _may(self, request: HttpRequest, move: Move) -> bool:
        return request.user.has_perm(f"{self.opts.app_label}.{move.name}_{self.opts.model_name}")

    def _chosen(self, request: HttpRequest, object_id: str, move: Move) -> QuerySet[OutboxMessage]:
        if not (self.has_view_permission(request) and self._may(request, move)):
            raise PermissionDenied
        return _one(unquote(object_id))

    def _move(self, request: HttpRequest, move: Move, chosen: QuerySet[OutboxMessage]) -> None:
        moved = move.make(chosen, request.user.pk)
        if move is not DISCARD:
            text = ngettext(
                "%(count)d message is pending again.",
                "%(count)d messages are pending again.",
                moved.count,
            )
        else:
            text = ngettext(
                "%(count)d message is discarded.", "%(count)d messages are discarded.", moved.count
            )
        parts = [text % {"count": moved.count}]
        if moved.skipped:
            parts.append(moved.skipped_text())
        level = messages.WARNING if moved.skipped else messages.SUCCESS
        self.message_user(request, " ".join(parts), level)

    def _ask_and_move(
        self, request: HttpRequest, move: Move, chosen: QuerySet[OutboxMessage]
    ) -> HttpResponseBase | None:
        if "confirmed" not in request.POST:
            return self._confirm(request, move, chosen, reverse(self._url_name("changelist")))
        self._move(request, move, chosen)
        return None

    def _confirm(
        self, request: HttpRequest, move: Move, chosen: QuerySet[OutboxMessage], back: str
    ) -> TemplateResponse:
        ids = chosen_ids(chosen)
        rows = OutboxMessage.objects.filter(pk__in=ids)
        movable = move.movable(rows)
        states = state_counts(movable)
        context = {
            **self.admin_site.each_context(request),
            "title": _("Discard messages?") if move is DISCARD else _("Retry messages?"),
            "action": move.name,
            "opts": self.opts,
            "media": self.media,
            "states": states.items(),
            "count": states.total(),
            "others": (state_counts(rows) - states).items(),
            "listed": movable.only("pk", "task")[:LISTED_TO_CONFIRM],
            "selected": request.POST.getlist(helpers.ACTION_CHECKBOX_NAME),
            "select_across": request.POST.get("select_across", "0"),
            "checkbox_name": helpers.ACTION_CHECKBOX_NAME,
            "back": back,
        }
        return TemplateResponse(
            request, f"admin/outbox/outboxmessage/{move.name}_confirmation.html", context
        )


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _one(object_id: str) -> QuerySet[OutboxMessage]:
    """Return the message with this id, or none."""
    message: QuerySet[OutboxMessage] = OutboxMessage.objects.filter(pk=_uuid(object_id))
    return message


def _due(available_at: datetime) -> str:
    late = timezone.now() - available_at
    if late.total_seconds() > 0:
        return _("due for %(duration)s") % {"duration": duration(late)}
    return _("due %(distance)s") % {"distance": distance(available_at)}

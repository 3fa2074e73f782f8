"""The admin's page of one message: what it calls, what became of it, what went over the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.urls import reverse
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from idempotency.listing import ReadOnlyAdmin
from idempotency.moments import moment
from outbox import payload
from outbox.models import OutboxMessage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.utils.safestring import SafeString

Status = OutboxMessage.Status


class MessagePage(ReadOnlyAdmin):
    """The fields of the page. Nothing on it can be edited."""

    fieldsets = (
        (None, {"fields": ("state", "task", "id", "key", "turn", "arguments")}),
        (
            gettext_lazy("Times"),
            {
                "fields": (
                    "created",
                    "due",
                    "expires",
                    "published_moment",
                    "redeliveries",
                    "executed_moment",
                    "receipt",
                )
            },
        ),
        (gettext_lazy("Errors"), {"fields": ("attempts", "error_table")}),
        (
            gettext_lazy("On the wire"),
            {
                "classes": ("collapse",),
                "fields": ("target", "content", "header_json", "property_json"),
            },
        ),
    )
    readonly_fields = (
        "state",
        "turn",
        "arguments",
        "created",
        "due",
        "expires",
        "published_moment",
        "executed_moment",
        "receipt",
        "error_table",
        "target",
        "content",
        "header_json",
        "property_json",
    )

    @admin.display(description=gettext_lazy("state"))
    def state(self, message: OutboxMessage) -> SafeString:
        return format_html(
            '<span class="outbox-state outbox-{}">{}</span>',
            message.status,
            message.get_status_display(),
        )

    @admin.display(description=gettext_lazy("order"))
    def turn(self, message: OutboxMessage) -> SafeString:
        if not message.ordering_key:
            return quiet(_("in none"))
        text = _("%(key)s, number %(number)s") % {
            "key": message.ordering_key,
            "number": message.sequence,
        }
        blocking = OutboxMessage.objects.open_of(message.ordering_key).exclude(pk=message.pk)
        if not message.blocked or (first := blocking.first()) is None:
            return format_html("{}", text)
        return format_html(
            '{}<p>{} <a href="{}">{}</a> ({})</p>',
            text,
            _("waits for"),
            self._page_of(str(first.pk)),
            first,
            receipt_text(first) if first.status == Status.PUBLISHED else first.get_status_display(),
        )

    @admin.display(description=gettext_lazy("called with"))
    def arguments(self, message: OutboxMessage) -> SafeString:
        call = payload.read(message)
        return format_html(
            "{}{}{}",
            format_html('<p class="quiet">{}</p>', call.unread) if call.unread else "",
            _table(call.arguments) if call.arguments else quiet(_("no arguments")),
            format_html("<p>{}: {}</p>", _("then"), ", ".join(call.followed_by))
            if call.followed_by
            else "",
        )

    @admin.display(description=gettext_lazy("created"))
    def created(self, message: OutboxMessage) -> SafeString:
        return moment(message.created_at)

    @admin.display(description=gettext_lazy("due"))
    def due(self, message: OutboxMessage) -> SafeString:
        return moment(message.available_at)

    @admin.display(description=gettext_lazy("expires"))
    def expires(self, message: OutboxMessage) -> SafeString:
        return moment(message.expires_at)

    @admin.display(description=gettext_lazy("published"))
    def published_moment(self, message: OutboxMessage) -> SafeString:
        return moment(message.published_at)

    @admin.display(description=gettext_lazy("executed"))
    def executed_moment(self, message: OutboxMessage) -> SafeString:
        return moment(message.executed_at)

    @admin.display(description=gettext_lazy("receipt"))
    def receipt(self, message: OutboxMessage) -> str:
        if not message.awaits_receipt:
            return _("none expected: the task is not guarded on this database")
        return _("recorded") if message.executed_at else receipt_text(message)

    @admin.display(description=gettext_lazy("errors"))
    def error_table(self, message: OutboxMessage) -> SafeString:
        if not message.errors:
            return quiet(_("none"))
        rows = format_html_join(
            "",
            '<tr><td>{}</td><td class="nowrap">{}</td><td><pre>{}</pre></td></tr>',
            (
                (error.get("attempt"), _error_moment(error.get("at")), error.get("error"))
                for error in reversed(message.errors)
            ),
        )
        return format_html(
            '<table class="outbox-table"><thead><tr><th>{}</th><th>{}</th><th>{}</th></tr></thead>'
            "<tbody>{}</tbody></table>",
            _("attempt"),
            _("at"),
            _("error"),
            rows,
        )

    @admin.display(description=gettext_lazy("target"))
    def target(self, message: OutboxMessage) -> SafeString:
        return _table(
            (name, value)
            for name, value in (
                (_("queue"), message.queue),
                (_("exchange"), message.exchange),
                (_("routing key"), message.routing_key),
            )
            if value
        )

    @admin.display(description=gettext_lazy("body"))
    def content(self, message: OutboxMessage) -> str:
        return _("%(size)s bytes of %(type)s") % {
            "size": f"{len(message.body):,}",
            "type": message.properties.get("content_type"),
        }

    @admin.display(description=gettext_lazy("headers"))
    def header_json(self, message: OutboxMessage) -> SafeString:
        return format_html("<pre>{}</pre>", payload.pretty(message.headers))

    @admin.display(description=gettext_lazy("properties"))
    def property_json(self, message: OutboxMessage) -> SafeString:
        return format_html("<pre>{}</pre>", payload.pretty(message.properties))

    def _page_of(self, object_id: str) -> str:
        return reverse(self._url_name("change"), args=[object_id])

    def _url_name(self, page: str) -> str:
        return f"{self.admin_site.name}:{self._name(page)}"

    def _name(self, page: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{page}"


def quiet(text: str) -> SafeString:
    return format_html('<span class="quiet">{}</span>', text)


def receipt_text(message: OutboxMessage) -> str:
    """Return what is known of a message's receipt while it has none."""
    if not message.awaits_receipt:
        return _("not recorded")
    if message.status == Status.PUBLISHED and message.available_at is None:
        return _("receipt outstanding, stuck")
    return _("receipt outstanding")


def _error_moment(value: str | None) -> SafeString:
    return moment(parse_datetime(value) if value else None)


def _table(rows: Iterable[tuple[str, str]]) -> SafeString:
    body = format_html_join("", "<tr><th>{}</th><td><pre>{}</pre></td></tr>", rows)
    return format_html('<table class="outbox-table">{}</table>', body)

"""Moments and durations as the admin shows them; for both apps."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

NOTHING = format_html('<span class="quiet">{}</span>', "-")
SECOND, MINUTE, HOUR, DAY = 1, 60, 3_600, 86_400


def moment(value: datetime | None) -> SafeString:
    """Return a moment and how far away it is."""
    if value is None:
        return NOTHING
    text = timezone.localtime(value).strftime("%Y-%m-%d %H:%M:%S")
    return format_html('{} <span class="quiet">({})</span>', _time(value, text), distance(value))


def short_moment(value: datetime | None) -> SafeString:
    """Return the time of a moment of today, or the day of an earlier one."""
    if value is None:
        return NOTHING
    local = timezone.localtime(value)
    is_today = local.date() == timezone.localdate()
    return _time(value, local.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M"))


def age(value: datetime) -> SafeString:
    """Return how long ago a moment was."""
    return _time(value, duration(max(timezone.now() - value, timedelta(0))))


def distance(value: datetime) -> str:
    """Return "12 min ago" or "in 12 min"."""
    ahead = value - timezone.now()
    if ahead > timedelta(0):
        return _("in %(duration)s") % {"duration": duration(ahead)}
    return _("%(duration)s ago") % {"duration": duration(-ahead)}


def duration(value: timedelta) -> str:
    """Return a duration in its largest unit, such as "32 ms", "12 min" or "3 d"."""
    seconds = value.total_seconds()
    if seconds < SECOND:
        return f"{seconds * 1000:.0f} ms"
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{seconds // MINUTE:.0f} min"
    if seconds < 2 * DAY:
        return f"{seconds // HOUR:.0f} h"
    return f"{seconds // DAY:.0f} d"


def _time(value: datetime, text: str) -> SafeString:
    """Return the text, with the exact moment as its tooltip."""
    return format_html(
        '<time datetime="{}" title="{}" class="nowrap">{}</time>',
        value.isoformat(),
        timezone.localtime(value).isoformat(" "),
        text,
    )

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
    text = _local(value).strftime("%Y-%m-%d %H:%M:%S")
    return format_html('{} <span class="quiet">({})</span>', _time(value, text), distance(value))


def short_moment(value: datetime | None) -> SafeString:
    """Return the time of a moment of today, or the day of an earlier one."""
    if value is None:
        return NOTHING
    local = _local(value)
    is_today = local.date() == _local(timezone.now()).date()
    return _time(value, local.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M"))


def age(value: datetime) -> SafeString:
    """Return how long ago a moment was."""
    return _time(value, duration(max(-_ahead(value), timedelta(0))))


def distance(value: datetime) -> str:
    """Return "12 min ago" or "in 12 min"."""
    ahead = _ahead(value)
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


def _ahead(value: datetime) -> timedelta:
    """Return how far ahead a moment is. Without USE_TZ only one out of JSON has a time zone."""
    return value - datetime.now(value.tzinfo)


def _local(value: datetime) -> datetime:
    """Return a moment in the current time zone, where one without a time zone is already."""
    return timezone.localtime(value) if timezone.is_aware(value) else value


def _time(value: datetime, text: str) -> SafeString:
    """Return the text, with the exact moment as its tooltip."""
    return format_html(
        '<time datetime="{}" title="{}" class="nowrap">{}</time>',
        value.isoformat(),
        _local(value).isoformat(" "),
        text,
    )

"""Admin pages of tables that are too long to count, sort or search freely; for both apps.

Every statement of such a page costs the same at a thousand rows and at a hundred million: what is
listed, counted, searched and ordered comes from an index and is bounded.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, cast

from django.contrib.admin import ModelAdmin, ShowFacets
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import label_for_field
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Max, Min, Model
from django.http import HttpRequest
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import cached_property
from django.utils.text import capfirst
from django.utils.translation import gettext as _

if TYPE_CHECKING:
    from django.db.models import QuerySet

    _ModelAdmin = ModelAdmin[Model]
    _Paginator = Paginator[Model]
else:
    # Django's classes take no type arguments when they run.
    _ModelAdmin = ModelAdmin
    _Paginator = Paginator

YEAR, MONTH, DAY = 1, 2, 3
PARTS = ("year", "month", "day")


class BoundedPaginator(_Paginator):
    """Pages over the first ``BOUND`` rows; a full ``COUNT(*)`` would read the whole table."""

    BOUND = 10_000

    @cached_property
    def count(self) -> int:
        return min(self._counted, self.BOUND)

    @property
    def truncated(self) -> bool:
        """Whether there are more rows than those."""
        return self._counted > self.BOUND

    @cached_property
    def _counted(self) -> int:
        # In the list's own order, so that the same index serves it.
        return cast("QuerySet[Model]", self.object_list[: self.BOUND + 1]).count()


class BoundedChangeList(ChangeList):
    """A list that sorts by nothing but ``sortable_by``, with a drill-down that reads two rows."""

    paginator: BoundedPaginator
    model_admin: ReadOnlyAdmin

    def get_queryset(self, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        return super().get_queryset(*args, **kwargs).defer(*self.model_admin.list_deferred)

    def get_ordering_field(self, field_name: Callable[..., Any] | str) -> Any:
        # Django leaves it to the page not to link there; the address bar can still ask for it.
        if self.sortable_by is None or field_name in self.sortable_by:
            return super().get_ordering_field(field_name)
        return None

    def get_filters(self, request: HttpRequest) -> Any:
        try:
            return super().get_filters(request)
        except (ValueError, OverflowError) as error:
            # The drill-down to the last year: Django looks for what follows it.
            raise IncorrectLookupParameters(error) from error

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not self.params:
            # Nothing narrows the list, so it needs no link that shows all of it.
            self.full_result_count = self.result_count

    @cached_property
    def drill_down(self) -> dict[str, Any]:
        """Return the context of ``admin/date_hierarchy.html``.

        Django's own asks for the DISTINCT days of all rows; this offers each day from the first
        row's to the last row's.
        """
        name = self.date_hierarchy
        bounds = self.root_queryset.order_by().aggregate(first=Min(name), last=Max(name))
        if bounds["first"] is None:
            return {"show": False}
        chosen = [int(self.params[each]) for each in self._drill_parameters()]
        return {
            "show": True,
            "field_name": label_for_field(name, self.model),
            "back": self._drill_link(chosen[:-1]) if chosen else None,
            "choices": [
                self._drill_link(choice) if choice != chosen else {"title": _title(choice)}
                for choice in _choices(chosen, _day(bounds["first"]), _day(bounds["last"]))
            ],
        }

    def _drill_parameters(self) -> list[str]:
        names = [f"{self.date_hierarchy}__{part}" for part in PARTS]
        return [name for name in names if name in self.params]

    def _drill_link(self, levels: list[int]) -> dict[str, str]:
        names = [f"{self.date_hierarchy}__{part}" for part in PARTS]
        parameters = dict(zip(names, levels, strict=False))
        link = self.get_query_string(parameters, [f"{self.date_hierarchy}__"])
        return {"link": link, "title": _title(levels)}


class ReadOnlyAdmin(_ModelAdmin):
    """Rows are looked at: nobody adds, changes or deletes one, whatever their permissions.

    ``list_deferred``: the fields that the list does not read.
    """

    list_deferred: tuple[str, ...] = ()
    paginator = BoundedPaginator
    list_per_page = 50
    show_full_result_count = False
    show_facets = ShowFacets.NEVER

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return BoundedChangeList

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Allow the filters and the drill-down: any other lookup could read the whole table."""
        names = {getattr(choice, "parameter_name", "") for choice in self.list_filter}
        if self.date_hierarchy:
            year, *narrower = (f"{self.date_hierarchy}__{part}" for part in PARTS)
            names.add(year)
            if request is not None and year in request.GET:
                names.update(narrower)
        return lookup in names


def _choices(chosen: list[int], first: date, last: date) -> list[list[int]]:
    """Return the years, months or days that lie within the bounds, one level below ``chosen``."""
    low, high = ([day.year, day.month, day.day] for day in (first, last))
    levels = list(chosen)
    if not levels:
        while len(levels) < MONTH and low[: len(levels) + 1] == high[: len(levels) + 1]:
            levels.append(low[len(levels)])
    if len(levels) == DAY:
        return [levels]
    candidates: range
    if not levels:
        candidates = range(first.year, last.year + 1)
    elif len(levels) == YEAR:
        candidates = range(1, 13)
    else:
        candidates = range(1, monthrange(*levels)[1] + 1)
    below = [[*levels, value] for value in candidates]
    return [choice for choice in below if low[: len(choice)] <= choice <= high[: len(choice)]]


def _day(moment: datetime) -> date:
    return timezone.localtime(moment).date() if timezone.is_aware(moment) else moment.date()


def _title(levels: list[int]) -> str:
    if not levels:
        return _("All dates")
    if len(levels) == YEAR:
        return str(levels[0])
    kind = "YEAR_MONTH_FORMAT" if len(levels) == MONTH else "MONTH_DAY_FORMAT"
    return capfirst(date_format(date(*levels, *[1] * (DAY - len(levels))), kind))

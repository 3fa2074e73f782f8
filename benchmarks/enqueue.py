"""What ``enqueue()`` adds to a view, against what a bare ``.delay()`` with confirms adds to it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.harness import Ratio, project, seconds

VIEWS = 400
# The broker goes on with a message for a while after its confirm: views in turn would pay for it.
IN_A_ROW = 50


def enqueue(rounds: int = 7) -> list[Ratio]:
    """Time the same view (one row in one transaction) without a task, and both ways with one."""
    with project("rabbitmq"):
        from django.db import transaction
        from django.http import HttpRequest, HttpResponse

        from outbox.models import OutboxMessage
        from tests.project.models import Effect
        from tests.project.tasks import record

        def bare(request: HttpRequest) -> HttpResponse:
            with transaction.atomic():
                Effect.objects.create(label="view")
            return HttpResponse()

        def enqueued(request: HttpRequest) -> HttpResponse:
            with transaction.atomic():
                Effect.objects.create(label="view")
                OutboxMessage.objects.enqueue(record.s("view"))
            return HttpResponse()

        def delayed(request: HttpRequest) -> HttpResponse:
            with transaction.atomic():
                Effect.objects.create(label="view")
            record.delay("view")
            return HttpResponse()

        ratios = []
        for _ in range(rounds):
            base, ours, peer = _medians([bare, enqueued, delayed], HttpRequest())
            print(
                f"  view {base * 1e6:,.0f} us   enqueue() adds {(ours - base) * 1e6:,.0f} us   "
                f".delay() adds {(peer - base) * 1e6:,.0f} us"
            )
            ratios.append((ours - base) / (peer - base))
    return [Ratio("enqueue() adds to a view, over what .delay() with confirms adds", tuple(ratios))]


def _medians(views: list[Callable[..., object]], request: object) -> list[float]:
    """Return each view's median seconds; some calls of each in turn."""
    times: list[list[float]] = [[] for _ in views]
    for _ in range(VIEWS // IN_A_ROW):
        for view, taken in zip(views, times, strict=True):
            taken += [seconds(lambda view=view: view(request)) for _ in range(IN_A_ROW)]
    return [statistics.median(taken) for taken in times]

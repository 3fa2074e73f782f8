"""Database upsert: the statement itself is idempotent, so there is nothing to guard."""

from decimal import Decimal
from uuid import UUID

from celery import shared_task

from sample_project.guide.models import Points, Price


@shared_task
def add_points(event_id: UUID, player_id: int, points: int) -> None:
    """Enter the points of one event in the ledger; the score is the sum of the ledger."""
    entry, _ = Points.objects.get_or_create(
        event_id=event_id, defaults={"player_id": player_id, "points": points}
    )
    if (entry.player_id, entry.points) != (player_id, points):
        raise ValueError(f"Event {event_id} has given {entry.points} points before.")


@shared_task
def set_price(product: str, price: Decimal, version: int) -> None:
    """Set a price, unless a newer version has arrived before."""
    Price.objects.get_or_create(product=product, defaults={"price": price, "version": version})
    older = Price.objects.filter(product=product, version__lt=version)
    older.update(price=price, version=version)

"""Database table: no table of one's own, because IdempotencyKey is one."""

from celery import shared_task

from idempotency import idempotent
from sample_project.guide.models import Sale


@shared_task
@idempotent(namespace="guide.import", key="{file_name}")
def import_sales(file_name: str, rows: list[tuple[str, int]]) -> int:
    """Import a file, all of it or nothing; the same file again returns what it returned."""
    for product, quantity in rows:
        Sale.objects.create(product=product, quantity=quantity)
    return len(rows)

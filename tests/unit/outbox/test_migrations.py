"""What the migrations do beyond the model."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import connection

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]


TABLES = ("outbox_outboxmessage", "outbox_orderingkey")


def storage_options(table: str) -> dict[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT unnest(reloptions) FROM pg_class WHERE relname = %s", [table])
        return dict(option.split("=") for (option,) in cursor)


@pytest.mark.parametrize("table", TABLES)
def test_the_table_is_vacuumed_and_analysed_by_its_traffic(table: str) -> None:
    assert storage_options(table) == {
        "autovacuum_vacuum_scale_factor": "0.02",
        "autovacuum_vacuum_threshold": "1000",
        "autovacuum_analyze_scale_factor": "0.02",
        "autovacuum_analyze_threshold": "1000",
    }


def test_which_can_be_taken_back() -> None:
    try:
        call_command("migrate", "outbox", "0001", verbosity=0)
        assert [storage_options(table) for table in TABLES] == [{}, {}]
    finally:
        call_command("migrate", "outbox", verbosity=0)
    assert all(storage_options(table) for table in TABLES)

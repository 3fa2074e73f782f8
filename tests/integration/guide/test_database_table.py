"""docs/guide/database-table.md"""

from __future__ import annotations

import subprocess
import sys

import pytest

from idempotency.exceptions import KeyInProgress
from idempotency.models import IdempotencyKey
from sample_project.guide.models import Sale
from sample_project.guide.tasks import import_sales
from tests.integration.guide import flawed
from tests.integration.guide.racing import race

pytestmark = pytest.mark.django_db(transaction=True)

ROWS: list[tuple[str, int]] = [("tea", 3), ("pot", 1)]


def refuse() -> None:
    raise RuntimeError("row 2 is not a number")


def test_the_flaw_hash_differs_from_process_to_process() -> None:
    command = [sys.executable, "-c", "print(hash('{\"order\": 7}'))"]
    hashes = {
        subprocess.run(
            command, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 2


def test_the_flaw_a_crash_leaves_it_processing_for_ever(tables: None) -> None:
    def crash() -> None:
        raise flawed.Killed

    with pytest.raises(flawed.Killed):
        flawed.with_table("import", crash)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="is being processed"):
            flawed.with_table("import", lambda: "never")


def test_the_flaw_after_a_failure_each_delivery_runs(tables: None) -> None:
    with pytest.raises(RuntimeError):
        flawed.with_table("import", refuse)
    ran: list[int] = []
    for _ in range(3):
        flawed.with_table("import", lambda: ran.append(1))
    assert len(ran) == 3
    assert flawed.execute("SELECT status FROM flawed_executions") == [("failed",)]


def test_the_flaw_half_of_the_work_is_committed_with_the_failure(tables: None) -> None:
    def half() -> None:
        Sale.objects.create(product="tea", quantity=3)
        refuse()

    with pytest.raises(RuntimeError):
        flawed.with_table("import", half)
    assert Sale.objects.count() == 1


def test_a_file_is_imported_once_however_concurrently() -> None:
    results = race(lambda: import_sales("november.csv", ROWS))
    assert Sale.objects.count() == len(ROWS)
    assert 2 in results
    assert all(result == 2 or isinstance(result, KeyInProgress) for result in results)
    assert import_sales("november.csv", ROWS) == 2
    assert Sale.objects.count() == len(ROWS)


def test_a_failure_leaves_nothing_and_may_run_again() -> None:
    rows: list[tuple[str, int]] = [("tea", 3), ("pot", -1)]
    with pytest.raises(Exception, match="violates check constraint"):
        import_sales("november.csv", rows)
    assert not Sale.objects.exists()
    assert not IdempotencyKey.objects.exists()
    assert import_sales("november.csv", ROWS) == 2
    assert Sale.objects.count() == len(ROWS)

"""What the table refuses, and which indexes serve its readers."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction

from idempotency.models import IdempotencyKey
from idempotency.querysets import FIND

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def create(**changed: Any) -> IdempotencyKey:
    fields: dict[str, Any] = {
        "namespace": "tests",
        "key": "k",
        "result": b"json1:null",
        "created_at": NOW,
        "finished_at": NOW,
        "expires_at": NOW,
    }
    key: IdempotencyKey = IdempotencyKey.objects.create(**{**fields, **changed})
    return key


@pytest.mark.django_db
@pytest.mark.parametrize("missing", ["result", "finished_at", "expires_at"])
def test_a_completed_key_has_its_result_and_times(missing: str) -> None:
    with transaction.atomic(), pytest.raises(IntegrityError, match="idempotency_state_times"):
        create(**{missing: None})


@pytest.mark.django_db
def test_an_unknown_state_is_refused() -> None:
    with transaction.atomic(), pytest.raises(IntegrityError, match="idempotency_state_times"):
        create(state="nonsense")


@pytest.mark.django_db
def test_namespace_scope_and_key_are_unique_together() -> None:
    create()
    create(namespace="other")
    create(scope="other")
    create(key="other")
    with transaction.atomic(), pytest.raises(IntegrityError, match="idempotency_key_namespace"):
        create()


def plan(query: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {query}")
        return "\n".join(line for (line,) in cursor)


CLAIM = FIND % {"key": "'k1'", "namespace": "'tests'", "scope": "''"}


def fill() -> None:
    """Add 10,000 keys of one namespace."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO idempotency_idempotencykey (namespace, scope, key, fingerprint, state,"
            " result, message_id, created_at, finished_at, expires_at) SELECT 'tests', '',"
            " 'k' || n, '', 'completed', '', '', now(), now(), now()"
            " FROM generate_series(1, 10000) AS n"
        )


@pytest.mark.django_db
@pytest.mark.parametrize("analysed", ["never", "empty", "with one row", "full"])
def test_a_claim_reads_one_row_whatever_the_statistics_say(analysed: str) -> None:
    with connection.cursor() as cursor:
        if analysed == "with one row":
            create(key="k0")
        if analysed in ("empty", "with one row"):
            cursor.execute("ANALYZE idempotency_idempotencykey")
        fill()
        if analysed == "full":
            cursor.execute("ANALYZE idempotency_idempotencykey")
    told = plan(CLAIM)
    assert "Index Scan using idempotency_key_namespace_scope" in told
    assert "Filter" not in told


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("query", "index"),
    [
        (
            "SELECT FROM idempotency_idempotencykey WHERE key = 'k'",
            "idempotency_key_namespace_scope",
        ),
        (
            "SELECT FROM idempotency_idempotencykey WHERE expires_at < now()",
            "idempotency_expires",
        ),
        (
            "SELECT FROM idempotency_idempotencykey WHERE namespace COLLATE \"C\" = 'rare'",
            "idempotency_namespace",
        ),
    ],
)
def test_an_index_serves(query: str, index: str) -> None:
    fill()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE idempotency_idempotencykey")
    assert index in plan(query)


@pytest.mark.django_db
def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "idempotency", check=True, dry_run=True, stdout=io.StringIO())


def test_says_which_key_it_is() -> None:
    assert str(IdempotencyKey(namespace="tests", key="k")) == "tests k"

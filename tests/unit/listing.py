"""What an admin page asks of a long table, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import connection
from django.test.utils import CaptureQueriesContext

from idempotency.listing import BoundedPaginator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.test import Client

# A few more than are counted: a sort within equal moments reads on to the next one.
AT_MOST = BoundedPaginator.BOUND * 1.1


def captured(
    client: Client, url: str, table: str, query: dict[str, Any] | None = None
) -> list[str]:
    """Return the statements on a table with which a page is made."""
    with CaptureQueriesContext(connection) as context:
        response = client.get(url, query)
    assert response.status_code == 200, (query, response)
    return [each["sql"] for each in context if table in each["sql"]]


def plans_of(statements: list[str], analyze: bool = False) -> list[dict[str, Any]]:
    """Return the nodes of the statements' plans, each with its SQL; ``analyze`` executes them."""
    options = "ANALYZE, FORMAT JSON" if analyze else "FORMAT JSON"
    nodes = []
    for sql in statements:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN ({options}) {sql}")
            ((plan,),) = cursor.fetchone()
        nodes += [{"SQL": sql, **node} for node in _nodes(plan["Plan"])]
    return nodes


def assert_indexed(plans: list[dict[str, Any]], query: object) -> None:
    """Assert that no statement reads a table other than by an index."""
    assert plans
    for node in plans:
        assert node["Node Type"] != "Seq Scan", (query, node)


def assert_bounded(plans: list[dict[str, Any]], query: object) -> None:
    """Assert that no statement reads more rows than a list has."""
    for node in plans:
        rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        assert rows * node["Actual Loops"] <= AT_MOST, (query, node)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    children = plan.pop("Plans", ())
    yield plan
    for child in children:
        yield from _nodes(child)

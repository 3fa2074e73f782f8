"""What the documents say is there, and what they show is what runs."""

from __future__ import annotations

import ast
import re
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import get_commands, load_command_class
from django.db import connection, transaction
from django.db.models.functions import Now

from idempotency.conf import IdempotencySettings
from outbox.conf import OutboxSettings
from outbox.models import OutboxMessage
from sample_project.guide import tasks as guide_tasks
from sample_project.shop.tasks import write_receipt
from tests.acceptance.documents import (
    DOCUMENTS,
    README,
    ROOT,
    anchors,
    blocks,
    links,
    occurs,
    sentences,
)
from tests.project.tasks import record

if TYPE_CHECKING:
    from pathlib import Path

GUARANTEES = ROOT / "docs" / "guarantees.md"
HOW_TO = ROOT / "docs" / "how-to.md"
PRODUCTION = ROOT / "docs" / "production.md"
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
SHOP = sorted((ROOT / "sample_project").rglob("*.py"))
GUIDE = ROOT / "docs" / "guide"
GUIDE_PAGES = sorted(GUIDE.glob("*.md"))
GUIDE_FLAWS = GUIDE / "flaws.md"
GUIDE_PATTERNS = [page for page in GUIDE_PAGES if page.name not in {"README.md", "flaws.md"}]
PARTS = ["The flaw", "Why", "Right", "What remains"]
GUIDE_SOURCES = [*SHOP, *sorted((ROOT / "tests/integration/guide").glob("*.py"))]
NAMED_TESTS = {
    named for page in (GUARANTEES, *GUIDE_PAGES) for named in NAMED_TEST.findall(page.read_text())
}


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_the_readme_shows_the_sample_projects_code(block: str) -> None:
    assert any(occurs(block, source) for source in SHOP), f"not in sample_project:\n{block}"


def test_the_readme_begins_with_an_example() -> None:
    first_screen = README.read_text().splitlines()[:55]
    assert "```python" in first_screen
    for command in ("make demo", "make test"):
        assert any(command in line for line in first_screen)


@pytest.mark.parametrize("block", blocks(HOW_TO, "python"))
def test_each_example_of_the_how_to_is_in_a_test(block: str) -> None:
    assert occurs(block, ROOT / "tests/acceptance/test_how_to.py"), f"not in the test:\n{block}"


@pytest.mark.parametrize("block", blocks(PRODUCTION, "python"))
def test_the_production_guide_shows_the_sample_projects_settings(block: str) -> None:
    assert occurs(block, ROOT / "sample_project/settings.py"), f"not in the settings:\n{block}"


@pytest.mark.parametrize("page", GUIDE_PATTERNS, ids=by_name)
def test_each_page_of_the_guide_shows_code_that_runs_and_names_its_tests(page: Path) -> None:
    text = page.read_text()
    parts = re.findall(r"^\*\*([\w ]+)\.\*\*", text, re.MULTILINE)
    assert [part for part in parts if part != "The choices"] == PARTS
    shown = blocks(page, "python")
    assert shown
    for block in shown:
        assert any(occurs(block, source) for source in GUIDE_SOURCES), f"not in a file:\n{block}"
    tests = [name for _, name in NAMED_TEST.findall(text)]
    assert any("flaw" in name for name in tests) or page.name == "best-practices.md"
    assert any("flaw" not in name for name in tests)
    assert f"({page.name})" in (GUIDE / "README.md").read_text()


def test_each_flaw_has_its_test_or_a_reason() -> None:
    rows = re.findall(
        r"^\| ([PSCBT][\d.]+) \| (.+) \| (.+) \|$", GUIDE_FLAWS.read_text(), re.MULTILINE
    )
    numbers = Counter(number.rpartition(".")[0] for number, _, _ in rows)
    assert numbers == {
        "P1": 5,
        "P2": 6,
        "P3": 11,
        "S1": 10,
        "S2": 12,
        "S3": 9,
        "C": 14,
        "B": 3,
        "T": 3,
    }
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    for number, _, here in rows:
        named = re.findall(r"`(test_\w+)`", here)
        assert set(named) <= there, f"{number}: {set(named) - there}"
        assert named or here.endswith("."), number


def test_the_guide_shows_each_of_its_tasks() -> None:
    text = "".join(page.read_text() for page in GUIDE_PAGES)
    for name in guide_tasks.__all__:
        assert f"def {name}(" in text or name == "pay_bonus", name


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_name)
def test_no_link_leads_nowhere(document: Path) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_each_guarantee_of_the_readme_names_its_tests() -> None:
    readme = README.read_text()
    promised = readme[readme.rindex("```\n\n- ") :].split("\n\n")[1]
    promises = [sentences(line) for line in promised.removeprefix("- ").split("\n- ")]
    assert len(promises) == 3
    sections = {
        sentences(title): body
        for title, body in re.findall(
            r"^### (.+?)\n(.*?)(?=^##|\Z)", GUARANTEES.read_text(), re.MULTILINE | re.DOTALL
        )
    }
    for promise in promises:
        assert promise in sections, f"docs/guarantees.md does not have: {promise}"
    for title, body in sections.items():
        assert NAMED_TEST.search(body), f"no test is named for: {title}"


@pytest.mark.parametrize(("path", "name"), sorted(NAMED_TESTS))
def test_a_test_that_is_named_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("settings", "prefix"), [(OutboxSettings, "OUTBOX_"), (IdempotencySettings, "IDEMPOTENCY_")]
)
def test_each_setting_is_listed_with_its_default(settings: type, prefix: str) -> None:
    declared = {
        f"{prefix}{name}": _default(value)
        for name, value in vars(settings).items()
        if name.isupper() and name != "PREFIX"
    }
    listed = re.findall(r"^\| `(\w+)` \| ([\w.]+)", PRODUCTION.read_text(), re.MULTILINE)
    told = {name: default for name, default in listed if name.startswith(prefix)}
    assert told == declared, "the table of settings in docs/production.md"


def test_the_commands_exist() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    django = get_commands()
    for name in set(re.findall(r"manage\.py (\w+)", text)):
        assert name in django, name
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^    make (\w+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}\b.*:", makefile, re.MULTILINE), target


def test_the_commands_options_exist() -> None:
    known = set()
    for name, app in get_commands().items():
        if app in {"outbox", "idempotency"}:
            parser = load_command_class(app, name).create_parser("manage.py", name)
            known |= {option for action in parser._actions for option in action.option_strings}
    for option in set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", PRODUCTION.read_text())):
        assert option in known, option


@pytest.mark.django_db(transaction=True)
def test_the_queries_of_the_production_guide_find_what_they_say() -> None:
    behind, waiting = (s for s in "".join(blocks(PRODUCTION, "sql")).split(";") if s.strip())
    with transaction.atomic():
        stuck, unguarded, fresh, dead = (
            OutboxMessage.objects.enqueue(signature)
            for signature in (
                write_receipt.s(1, "Ada"),
                record.s("no receipt to wait for"),
                write_receipt.s(2, "Ada"),
                write_receipt.s(3, "Ada"),
            )
        )
    OutboxMessage.objects.settle([stuck.pk, unguarded.pk, fresh.pk])
    OutboxMessage.objects.filter(pk=stuck.pk).update(available_at=None)
    OutboxMessage.objects.filter(pk=dead.pk).update(status="dead", available_at=None)

    assert _rows(behind) == [(0,)]
    assert {(state, count) for state, count, _ in _rows(waiting)} == {("dead", 1), ("stuck", 1)}
    assert list(OutboxMessage.objects.stuck()) == [stuck]

    a_minute_ago = Now() - timedelta(minutes=1)
    OutboxMessage.objects.filter(pk=fresh.pk).update(available_at=a_minute_ago)
    assert [round(seconds) for (seconds,) in _rows(behind)] == [60]


def _rows(statement: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def _default(value: Any) -> str:
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.9g}"
    return str(value or "none")

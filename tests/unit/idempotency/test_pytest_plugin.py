"""The fixtures that come with the package, and how pytest finds them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, transaction

from idempotency import idempotent
from idempotency.models import IdempotencyKey
from outbox.models import OutboxMessage
from tests.project.models import Effect
from tests.project.tasks import record_once

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLUGINS = PROJECT["entry-points"]["pytest11"]


@idempotent(key="{label}")
def leave_effect(label: str) -> int:
    return int(Effect.objects.create(label=label).pk)


def test_assert_exactly_once_brings_a_test_that_commits(
    assert_exactly_once: Callable[..., Any],
) -> None:
    assert not connection.in_atomic_block
    assert assert_exactly_once(lambda: leave_effect("a")) == Effect.objects.get().pk


@pytest.mark.django_db
def test_idempotency_off(idempotency_off: None) -> None:
    assert leave_effect("a") != leave_effect("a")
    assert not IdempotencyKey.objects.exists()


@pytest.mark.django_db
def test_it_is_on_without_the_fixture() -> None:
    assert leave_effect("a") == leave_effect("a")


@pytest.mark.django_db
def test_travel(travel: Callable[..., None]) -> None:
    leave_effect("a")
    travel(7 * 24 * 3600 + 1)
    assert IdempotencyKey.objects.purge() == 1


@pytest.mark.django_db
def test_the_fixtures_of_the_outbox(
    drain_outbox: Callable[[], int], assert_enqueued: Callable[..., Any]
) -> None:
    with transaction.atomic():
        message = OutboxMessage.objects.enqueue(record_once.s("a"))
    assert assert_enqueued(record_once) == message
    assert drain_outbox() == 1
    assert Effect.objects.get().label == "a"


def test_a_plugin_is_named_by_its_module() -> None:
    """As ``-p`` names it, or pytest would load it twice and fail."""
    for name, module in PLUGINS.items():
        assert name == module
        import_module(module)


def test_loading_the_plugins_loads_no_django() -> None:
    program = f"import sys, {', '.join(PLUGINS)}; sys.exit('django' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("options", [(), ("-p", "idempotency.pytest_plugin")], ids=["", "-p"])
def test_pytest_finds_the_fixtures_of_an_installed_package(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    installed = tmp_path / "installed" / "a_package-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: a-package\nVersion: 1\n")
    lines = [f"{name} = {module}" for name, module in PLUGINS.items()]
    (installed / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines, ""]))
    elsewhere = tmp_path / "project"
    elsewhere.mkdir()
    fixtures = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures", "-q", *options],
        cwd=elsewhere,
        env={"PYTHONPATH": f"{installed.parent}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    for name in ("assert_exactly_once", "idempotency_off", "travel", "drain_outbox"):
        assert f"\n{name} " in fixtures.stdout, fixtures.stdout + fixtures.stderr

"""The report is a page that other sections may stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.report import write

if TYPE_CHECKING:
    from pathlib import Path


def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    page.write_text("# Faults\n\nWords.\n")
    write(page, "One", "a\n")
    write(page, "Two", "b\n")
    write(page, "One", "c\n")
    assert page.read_text() == "# Faults\n\nWords.\n\n## One\n\nc\n\n## Two\n\nb\n"

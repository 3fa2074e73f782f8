"""The documents as a test sees them: their code, their links, the tests they name."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language, without the indentation that they have there."""
    return [
        dedent(code) for _, name, code in FENCE.findall(document.read_text()) if name == language
    ]


def occurs(block: str, source: Path) -> bool:
    """Whether the block's lines stand in the file one after another, at any indentation."""
    return any(f"\n{dedent_at(block, width)}" in _text(source) for width in range(0, 17, 4))


def dedent_at(block: str, width: int) -> str:
    lines = dedent(block).splitlines()
    return "".join(f"{' ' * width}{line}\n" if line else "\n" for line in lines)


def links(document: Path) -> list[str]:
    """What the document links to inside this repository."""
    return [link for link in LINK.findall(document.read_text()) if "://" not in link]


def anchors(document: Path) -> set[str]:
    """The anchors that a reader's browser finds in the document."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sentences(text: str) -> str:
    """The text with its line breaks taken out."""
    return " ".join(text.split())


@cache
def _text(source: Path) -> str:
    return "\n" + source.read_text()

"""The report of runs as a page of docs/."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tests.faults.campaign import Outcome

COLUMNS = (
    "seed",
    "broker",
    "committed",
    "executed",
    "redelivered",
    "taken over",
    "lost",
    "doubled",
    "stuck",
    "phantom",
    "out of order",
    "faults",
    "seconds",
)


def table(outcomes: Iterable[Outcome]) -> str:
    """Return one line of Markdown for each run."""
    lines = [_line(COLUMNS), _line("---" for _ in COLUMNS)]
    return "\n".join(lines + [_line(_cells(outcome)) for outcome in outcomes])


def faults_table(outcomes: Sequence[Outcome]) -> str:
    """Return how often each kind of fault happened, in all runs together."""
    total = sum((outcome.faults for outcome in outcomes), Counter[str]())
    lines = [_line(("fault", "times")), _line(("---", "---"))]
    return "\n".join(lines + [_line((name, str(times))) for name, times in sorted(total.items())])


def section(outcomes: Sequence[Outcome]) -> str:
    """Return both tables."""
    return f"{table(outcomes)}\n\n{faults_table(outcomes)}\n"


def write(page: Path, title: str, text: str) -> None:
    """Put the text into the section of a page that has this title; at its end if none has."""
    heading = f"## {title}\n"
    before, found, after = (page.read_text() if page.exists() else "").partition(heading)
    if not found and before:
        before = before.rstrip("\n") + "\n\n"
    _, next_heading, rest = after.partition("\n## ")
    page.write_text(f"{before}{heading}\n{text}{next_heading}{rest}")


def _cells(outcome: Outcome) -> Iterable[str]:
    ledger = outcome.ledger
    values: tuple[object, ...] = (
        outcome.plan.seed,
        outcome.broker,
        ledger.committed,
        ledger.executed,
        ledger.redelivered,
        ledger.taken_over,
        ledger.lost,
        ledger.doubled,
        ledger.stuck,
        ledger.phantom,
        ledger.out_of_order,
        outcome.faults.total(),
        round(outcome.seconds),
    )
    return map(str, values)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"

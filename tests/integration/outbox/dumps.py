"""What a worker saw of its messages, with what differs for each send made equal."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tests.helpers import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from sample_project.processes import Process

ID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:\d\d)?")
SERIALIZERS = {"json": "json", "pickle": "pickle", "yaml": "yaml", "msgpack": "msgpack"}
# The relay's stamp; the time to live, which counts from the publish; the worker's process.
DIFFERENT = {"published_at", "expiration", "hostname", "origin"}

Seen = dict[str, Any]


class Dumps:
    """The files that ``tests.project.tasks.dump`` writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.serializers = [name for name, module in SERIALIZERS.items() if find_spec(module)]

    def clear(self) -> None:
        for path in self.directory.iterdir():
            path.unlink(missing_ok=True)

    def read(self) -> list[Seen]:
        """Each delivery's request, its values as ``as_told``; always in the same order."""
        seen = [json.loads(path.read_text()) for path in self.directory.glob("*.json")]
        return sorted(seen, key=lambda request: str((request["task"], request["args"])))

    def wait(self, number: int, worker: Process) -> list[Seen]:
        """Wait until ``number`` deliveries are there; return and forget them."""
        wait_for(
            lambda: len(self.read()) >= number,
            message=lambda: f"{len(self.read())} of {number}: {worker.output()[-3000:]}",
        )
        seen = self.read()
        self.clear()
        return seen


def comparable(seen: list[Seen]) -> list[dict[str, str]]:
    """Replace what differs with each send by what does not.

    Ids are numbered in the order in which they appear, and a moment is written in UTC.
    """
    ids: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        return ids.setdefault(match[0], f"id-{len(ids) + 1}")

    def plain(value: object) -> str:
        text = json.dumps(_without_differences(value), sort_keys=True)
        return MOMENT.sub(_in_utc, ID.sub(numbered, text))

    return [
        {name: plain(value) for name, value in sorted(request.items()) if name not in DIFFERENT}
        for request in seen
    ]


def _without_differences(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_differences(item) for item in value]
    if not isinstance(value, dict):
        return value
    left = {
        name: _without_differences(item) for name, item in value.items() if name not in DIFFERENT
    }
    if value.keys() == {"published_at"}:
        return "None"  # it was the only header
    if "subtask_type" in left:
        # The outbox has given it an id where the worker would have.
        left["options"].pop("task_id", None)
    return left


def _in_utc(match: re.Match[str]) -> str:
    moment = datetime.fromisoformat(match[0])
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC).isoformat()

"""The id of a message, its task and its execution."""

from __future__ import annotations

import os
import time
from uuid import UUID

import pytest

from outbox.ids import message_id
from tests.unit.outbox.wires import build, record


def test_the_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    before = time.time_ns() // 1_000_000
    id = message_id()
    after = time.time_ns() // 1_000_000
    assert id.version == 7
    assert id.variant == "specified in RFC 4122"
    assert before <= id.int >> 80 <= after


def test_ids_differ_in_and_after_a_fork() -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write_end, message_id().bytes)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    made = {message_id() for _ in range(1000)} | {UUID(bytes=os.read(read_end, 16))}
    os.close(read_end)
    os.close(write_end)
    assert len(made) == 1001


def test_only_a_signature_is_taken() -> None:
    for other in (record, "x", None, record.s("x").__dict__):
        with pytest.raises(TypeError, match="Enqueue a signature"):
            build(other)

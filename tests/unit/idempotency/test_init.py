"""``from idempotency import …`` works before Django is set up."""

from __future__ import annotations

import subprocess
import sys

import pytest

import idempotency


def test_the_public_names_need_no_django() -> None:
    program = (
        "from idempotency import idempotent, make_key\n"
        "@idempotent(key='{a}')\n"
        "def function(a): ...\n"
        "import sys\n"
        "assert 'celery' not in sys.modules\n"
        "print(make_key('n', 1)[:5])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "idk1:\n"


def test_every_public_name_is_there() -> None:
    for name in idempotency.__all__:
        assert callable(getattr(idempotency, name))


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        idempotency.nonsense  # noqa: B018

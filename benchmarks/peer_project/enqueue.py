"""``python -m benchmarks.peer_project.enqueue COUNT``: write messages; print when it committed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import django
from django.db import transaction
from django.utils.module_loading import import_string


def writer() -> Callable[[str], object]:
    """Return what writes one message, as the peer's users do."""
    from benchmarks.peer_project.celery import PEER, record

    if PEER == "django_celery_outbox":
        return record.delay
    publish = import_string(f"{PEER}.publish")
    return lambda label: publish("record", {"label": label})


def main(count: int) -> None:
    django.setup()
    write = writer()
    with transaction.atomic():
        for number in range(count):
            write(str(number))
    print(time.time())


if __name__ == "__main__":
    main(int(sys.argv[1]))

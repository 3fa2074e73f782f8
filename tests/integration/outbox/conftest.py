"""One broker and one worker for all tests of a module: starting a worker takes seconds."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from outbox.relay import Relay
from tests.integration.outbox.dumps import Dumps
from tests.servers.brokers import open_broker
from tests.servers.children import Children

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sample_project.processes import Process
    from tests.servers.brokers import Broker


@pytest.fixture(scope="module", params=["rabbitmq", "valkey"])
def shared_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """The app's broker for a whole module; tests of the module share what is in it."""
    for opened in open_broker(request.param, request.getfixturevalue(request.param)):
        with opened.serving_app():
            yield opened


@pytest.fixture(scope="module")
def relay(shared_broker: Broker) -> Iterator[Relay]:
    """A relay in this process, to the shared broker."""
    with closing(Relay()) as relay:
        yield relay


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Dumps:
    """What the shared worker saw."""
    return Dumps(tmp_path_factory.mktemp("dumps"))


@pytest.fixture(scope="module")
def shared_worker(
    shared_broker: Broker,
    dumps: Dumps,
    django_db_setup: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Process]:
    """A worker on the test database and the shared broker, which accepts every serializer."""
    children = Children(tmp_path_factory.mktemp("worker"), shared_broker.env)
    try:
        yield children.start_worker(
            queues="celery,topical,ranked,unknown",
            env={
                "TEST_DUMPS": str(dumps.directory),
                "TEST_ACCEPT_CONTENT": ",".join(dumps.serializers),
                "C_FORCE_ROOT": "1",  # root may not read pickles otherwise
            },
        )
    finally:
        children.end()

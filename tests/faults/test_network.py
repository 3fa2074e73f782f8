"""The network does to a connection what it says."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.faults.network import Network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.network import Link


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(ConnectionResetError):  # as a link that is cut ends it
            while data := self.request.recv(100):
                self.request.sendall(data.upper())


@pytest.fixture
def link() -> Iterator[Link]:
    with (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server,
        Network() as network,
    ):
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield network.link(f"redis://:secret@127.0.0.1:{server.server_address[1]}/7")
        server.shutdown()
        thread.join()


def connected(link: Link) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=5)


def answer(client: socket.socket, request: bytes, *, within: float = 5) -> bytes:
    client.settimeout(within)
    client.sendall(request)
    return client.recv(100)


def test_url_leads_through_the_link(link: Link) -> None:
    assert link.url == f"redis://:secret@127.0.0.1:{link.port}/7"


def test_passes_on_what_is_said(link: Link) -> None:
    with connected(link) as client:
        assert answer(client, b"one") == b"ONE"
        assert answer(client, b"two") == b"TWO"


def test_passes_on_that_a_client_has_gone(link: Link) -> None:
    with connected(link) as client:
        assert answer(client, b"one") == b"ONE"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""


def test_cut_resets_and_refuses_until_it_is_healed(link: Link) -> None:
    with connected(link) as client:
        assert answer(client, b"one") == b"ONE"
        link.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    with pytest.raises(ConnectionRefusedError):
        connected(link)
    link.heal()
    with connected(link) as client:
        assert answer(client, b"two") == b"TWO"


@pytest.mark.parametrize("answers_only", [True, False])
def test_what_hangs_goes_on_when_it_is_healed(link: Link, answers_only: bool) -> None:
    with connected(link) as client:
        assert answer(client, b"one") == b"ONE"
        link.hang(answers_only=answers_only)
        with pytest.raises(TimeoutError):
            answer(client, b"two", within=0.1)
        link.heal()
        client.settimeout(5)
        assert client.recv(100) == b"TWO"


def test_a_new_connection_hangs_too(link: Link) -> None:
    link.hang()
    with connected(link) as client:
        with pytest.raises(TimeoutError):
            answer(client, b"one", within=0.1)
        link.heal()
        client.settimeout(5)
        assert client.recv(100) == b"ONE"


def test_what_a_server_does_not_take_is_not_taken_from_the_client() -> None:
    """A process that is paused must not have its peer's words pile up in the network."""
    with socket.create_server(("127.0.0.1", 0)) as server, Network() as network:
        link = network.link(f"amqp://127.0.0.1:{server.getsockname()[1]}/")
        with connected(link) as client:
            accepted, _ = server.accept()
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.sendall(bytes(64 * 2**20))
            accepted.close()

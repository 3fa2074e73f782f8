"""A network of the tests' own: TCP links between a process and a server that can be cut or hang."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit

from sample_project.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Coroutine

PATIENCE = 60.0  # seconds within which the network does what it is told
# Closing a socket that lingers for no time at all resets the connection.
NO_LINGER = struct.pack("ii", 1, 0)


class Network:
    """Links, served by a thread. ``close`` cuts them all; the ``with`` statement closes."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._thread.start()
        self._links: list[Link] = []

    def link(self, url: str) -> Link:
        """Return a new link to the server of a URL."""
        link = Link(self, url)
        self._links.append(link)
        link.heal()
        return link

    def heal(self) -> None:
        for link in self._links:
            link.heal()

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the network's thread, and wait for its end."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def close(self) -> None:
        for link in self._links:
            link.cut()
        # What is aborted is closed by the loop's next turn.
        self.do(asyncio.sleep(0.01))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Link:
    """One way to a server: ``url`` is the server's, with this link's port in it."""

    def __init__(self, network: Network, url: str) -> None:
        server = urlsplit(url)
        credentials, _, _ = server.netloc.rpartition("@")
        self.port = free_port()
        self.url = server._replace(netloc=f"{credentials}@127.0.0.1:{self.port}").geturl()
        self.target = server.port or 0
        self.network = network
        # Whether bytes get through, from the server and to it.
        self.answers = True
        self.requests = True
        self.ends: set[End] = set()
        self._going = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        self.network.do(self._cut())

    def hang(self, *, answers_only: bool = False) -> None:
        """Let nothing through, or nothing that the server says, and tell nobody."""
        self.network.do(self._hang(answers_only))

    def heal(self) -> None:
        """Let everything through from now on; what hung goes on."""
        self.network.do(self._heal())

    async def _cut(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for task in self._connecting:
            task.cancel()
        for end in list(self.ends):
            end.reset()

    async def _hang(self, answers_only: bool) -> None:
        self.answers, self.requests = False, answers_only
        if not answers_only:
            self._going.clear()
        self._regulate()

    async def _heal(self) -> None:
        self.answers = self.requests = True
        self._going.set()
        self._regulate()
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(
                lambda: End(self, is_client=True), "127.0.0.1", self.port
            )

    def _regulate(self) -> None:
        for end in self.ends:
            end.regulate()

    def connect(self, client: End) -> None:
        """Find the client its server, once the link lets requests through."""
        task = asyncio.get_running_loop().create_task(self._connect(client))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: End) -> None:
        await self._going.wait()
        loop = asyncio.get_running_loop()
        try:
            _, server = await loop.create_connection(
                lambda: End(self, is_client=False), "127.0.0.1", self.target
            )
        except OSError:
            client.reset()
        else:
            client.meet(server)


class End(asyncio.Protocol):
    """One of the two sockets of a connection; what comes in at one goes out at the other."""

    def __init__(self, link: Link, *, is_client: bool) -> None:
        self._link = link
        self._is_client = is_client
        self._peer: End | None = None
        self._transport: asyncio.Transport | None = None
        self._congested = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._link.ends.add(self)
        self.regulate()
        if self._is_client:
            self._link.connect(self)

    def meet(self, server: End) -> None:
        self._peer, server._peer = server, self
        for end in (self, server):
            end.regulate()
            if end._transport is None or end._transport.is_closing():
                self.reset()

    def regulate(self) -> None:
        """Read, or leave what comes in to the kernel."""
        transport, peer = self._transport, self._peer
        if transport is None or transport.is_closing():
            return
        through = self._link.requests if self._is_client else self._link.answers
        if peer is not None and through and not peer._congested:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.write(data)

    def pause_writing(self) -> None:
        self._congested = True
        if self._peer is not None:
            self._peer.regulate()

    def resume_writing(self) -> None:
        self._congested = False
        if self._peer is not None:
            self._peer.regulate()

    def connection_lost(self, error: Exception | None) -> None:
        self._link.ends.discard(self)
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.close()

    def reset(self) -> None:
        """Close both sockets at once, whatever is on its way."""
        for end in (self, self._peer):
            if end is None or end._transport is None:
                continue
            plain: socket.socket = end._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            end._transport.abort()

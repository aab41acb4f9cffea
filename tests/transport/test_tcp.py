"""The loopback transport keeps the contract of transports, over TCP and over Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skyward.core.errors import ConfigError
from skyward.core.spec import Endpoint
from skyward.core.system.socket_paths import socket_path
from skyward.testing.service import Service
from skyward.testing.transport import Place, TransportConformance
from skyward.transport.stream import StreamChannel
from skyward.transport.tcp import TCPTransport


class _Accepted(StreamChannel):
    """The far end of a connection, served as soon as it is made."""

    def __init__(self, service: Service, tasks: set[asyncio.Task[None]]) -> None:
        super().__init__()
        self._service, self._tasks = service, tasks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._tasks.add(asyncio.get_running_loop().create_task(self._service.serve(self)))


class TestTCP(TransportConformance):
    """A server on 127.0.0.1."""

    def transport(self) -> TCPTransport:
        return TCPTransport()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        service, tasks = Service(), set[asyncio.Task[None]]()
        server = await asyncio.get_running_loop().create_server(lambda: _Accepted(service, tasks), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield Place(Endpoint("tcp", "127.0.0.1"), f"127.0.0.1:{port}", "127.0.0.1:1")
        finally:
            server.close()
            for task in tasks:
                task.cancel()


class TestUnix(TransportConformance):
    """A listening Unix socket."""

    folder: Path

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def transport(self) -> TCPTransport:
        return TCPTransport()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        service, tasks, path = Service(), set[asyncio.Task[None]](), str(self.folder / "s")
        server = await asyncio.get_running_loop().create_unix_server(lambda: _Accepted(service, tasks), path)
        try:
            yield Place(Endpoint("tcp", "127.0.0.1"), path, str(self.folder / "nobody"))
        finally:
            server.close()
            for task in tasks:
                task.cancel()


def test_a_socket_far_down_in_folders_is_reached(tmp_path: Path) -> None:
    path = tmp_path / ("f" * 150) / "agent.sock"
    path.parent.mkdir()

    async def talk() -> bytes:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"here")
            writer.close()

        with socket_path(str(path)) as name:
            server = await asyncio.start_unix_server(greet, name)
        link = await TCPTransport().connect(Endpoint("tcp", "127.0.0.1"), 5.0)
        try:
            return await (await link.open_channel(str(path))).read()
        finally:
            await link.close()
            server.close()

    assert asyncio.run(talk()) == b"here"


def test_plain_tcp_leaves_this_machine_never() -> None:
    """Anything but loopback is refused: it is not encrypted."""
    with pytest.raises(ConfigError, match="ssh"):
        asyncio.run(TCPTransport().connect(Endpoint("tcp", "10.1.2.3"), 1.0))

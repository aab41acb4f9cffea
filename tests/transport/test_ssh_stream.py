"""Streams over one SSH connection: what is written arrives, and a full line congests all of them.

The host is a server of asyncssh in this process, which forwards streams to a listener that sends back what it gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import asyncssh
import pytest

from skyward.transport.ssh_stream import Line, SSHChannel

MEGABYTE = 1 << 20


class Gateway(asyncssh.SSHServer):
    """Lets everybody in, and on to everywhere."""

    def begin_auth(self, username: str) -> bool:
        return False

    def connection_requested(self, *where: object) -> bool:
        return True


class Host:
    """A connection to it, with its line."""

    def __init__(self, connection: asyncssh.SSHClientConnection, port: int) -> None:
        self.connection = connection
        self.line = Line(connection)
        self._port = port

    async def open(self) -> SSHChannel:
        channel = SSHChannel(self.line)
        await self.connection.create_connection(lambda: channel.tcp, "127.0.0.1", self._port, encoding=None)
        return channel


@contextlib.asynccontextmanager
async def host() -> AsyncIterator[Host]:
    async def send_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(MEGABYTE):
            writer.write(data)
            await writer.drain()
        writer.close()

    echo = await asyncio.start_server(send_back, "127.0.0.1", 0)
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen("127.0.0.1", 0, server_factory=Gateway, server_host_keys=[key])
    arguments = {"known_hosts": None, "config": [], "agent_path": None, "username": "ann", "client_keys": None}
    try:
        async with (
            asyncio.timeout(60),
            asyncssh.connect("127.0.0.1", server.get_port(), **arguments) as connection,
        ):
            yield Host(connection, echo.sockets[0].getsockname()[1])
    finally:
        server.close()
        echo.close()


@pytest.mark.slow
def test_what_is_written_arrives_in_order_and_the_writer_is_held_up() -> None:
    async def main() -> None:
        async with host() as it:
            channel = await it.open()
            part = bytes(range(256)) * (MEGABYTE // 256)

            async def write() -> bool:
                held_up = False
                for _ in range(16):
                    channel.write([part[:5], part[5:]])
                    held_up |= channel.congested
                    await channel.drain()
                return held_up

            writing, got = asyncio.ensure_future(write()), bytearray()
            while len(got) < 16 * MEGABYTE:
                got += await channel.read()
            assert got == part * 16
            assert await writing
            channel.close()
            assert await channel.read() == b""
            channel.write([b"nothing happens"])

    asyncio.run(main())


def test_a_full_line_congests_all_its_streams() -> None:
    async def main() -> None:
        async with host() as it:
            it.connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
            one, other = await it.open(), await it.open()
            assert not other.congested
            one.write([bytes(2 * MEGABYTE)])  # without a turn of the loop: nobody reads meanwhile
            assert it.line.full
            assert other.congested
            await asyncio.gather(other.drain(), one.drain())
            assert not it.line.full
            one.close()
            other.close()

    asyncio.run(main())


def test_what_ends_the_connection_ends_its_streams() -> None:
    async def main() -> None:
        async with host() as it:
            channel = await it.open()
            assert channel.is_open
            reading = asyncio.ensure_future(channel.read())
            await asyncio.sleep(0)
            it.connection.abort()
            assert await reading == b""
            assert not channel.is_open
            assert not channel.congested

    asyncio.run(main())

"""What we change in asyncssh still has its effect on the version that is installed.

Each test shows what asyncssh does by itself, too: a hook whose reason is gone should go.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncssh
import pytest

from skyward.transport.asyncssh_hooks import spare_work, watch_refusals, watch_writing

IGNORE = 2
FED = 64 * 1024


class Host(asyncssh.SSHServer):
    """Lets everybody in, unless `refuses`, and counts the packets that arrive."""

    def __init__(self, packets: Counter[int], refuses: bool) -> None:
        self._packets, self._refuses = packets, refuses

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        log = conn.log_received_packet

        def count(kind: int, *rest: Any) -> None:
            self._packets[kind] += 1
            log(kind, *rest)

        conn.log_received_packet = count  # type: ignore[method-assign,assignment]

    def begin_auth(self, username: str) -> bool:
        return self._refuses


async def send_back(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Send what comes in, once it has come whole."""
    process.stdout.write(await process.stdin.read())
    process.exit(0)


@contextlib.asynccontextmanager
async def host(packets: Counter[int] | None = None, refuses: bool = False) -> AsyncIterator[int]:
    """Serve SSH on a port of this machine."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    counted = Counter[int]() if packets is None else packets
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=lambda: Host(counted, refuses),
        server_host_keys=[key],
        process_factory=send_back,
        encoding=None,
    )
    try:
        yield server.get_port()
    finally:
        server.close()


def connect(port: int, **arguments: Any) -> Any:
    """Connect without the user's configuration and keys."""
    given = {"known_hosts": None, "config": [], "agent_path": None, "username": "ann", "client_keys": None}
    return asyncssh.connect("127.0.0.1", port, **{**given, **arguments})


async def there_and_back(connection: asyncssh.SSHClientConnection, data: bytes) -> bytes:
    result = await connection.run("send back", input=data, encoding=None)
    return bytes(result.stdout)


@pytest.mark.parametrize(("cipher", "hooked"), [("aes128-gcm@openssh.com", True), ("aes128-ctr", False)])
def test_no_empty_packets_go_where_the_cipher_does_not_want_them(cipher: str, hooked: bool) -> None:
    async def run() -> tuple[int, int]:
        packets = Counter[int]()
        async with host(packets) as port, connect(port, encryption_algs=[cipher]) as connection:
            assert await there_and_back(connection, b"x") == b"x"
            plain = packets[IGNORE]
            spare_work(connection)
            assert await there_and_back(connection, bytes(1 << 20)) == bytes(1 << 20)
            return plain, packets[IGNORE] - plain

    plain, more = asyncio.run(run())
    assert plain > 0, "asyncssh sends no empty packets any more: spare_work can do without send_packet"
    assert (more == 0) is hooked


def test_asyncssh_is_fed_in_small_parts() -> None:
    async def run() -> list[int]:
        sizes: list[int] = []
        async with host() as port, connect(port) as connection:
            receive = connection.data_received

            def recorded(data: bytes, datatype: Any = None) -> None:
                sizes.append(len(data))
                receive(data, datatype)

            connection.data_received = recorded
            spare_work(connection)
            data = bytes(range(256)) * (8 << 10)
            assert await there_and_back(connection, data) == data
        return sizes

    sizes = asyncio.run(run())
    assert sum(sizes) > 2 << 20
    assert max(sizes) <= FED


def test_it_is_heard_when_the_socket_takes_no_more_and_when_it_does_again() -> None:
    async def run() -> list[str]:
        heard: list[str] = []
        async with host() as port, connect(port) as connection:
            connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
            resumed = asyncio.Event()

            def hear(word: str, then: Callable[[], None]) -> Callable[[], None]:
                return lambda: (heard.append(word), then())[1]

            watch_writing(connection, hear("paused", lambda: None), hear("resumed", resumed.set))
            processes = [await connection.create_process("send back", encoding=None) for _ in range(8)]
            for process in processes:
                process.stdin.write(bytes(2 << 20))  # without a turn of the loop: nobody reads meanwhile
            before = list(heard)
            async with asyncio.timeout(30):
                await resumed.wait()
            assert before == ["paused"]
        return heard

    assert asyncio.run(run())[:2] == ["paused", "resumed"]


def test_a_refusal_is_heard_with_the_methods_that_remain() -> None:
    async def run() -> list[bytes]:
        heard: list[bytes] = []

        class Client(asyncssh.SSHClient):
            def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
                watch_refusals(conn, heard.append)

        key = asyncssh.generate_private_key("ssh-ed25519")
        async with host(refuses=True) as port:
            with pytest.raises(asyncssh.PermissionDenied):
                await connect(port, client_factory=Client, client_keys=[key], preferred_auth="publickey")
        return heard

    heard = asyncio.run(run())
    assert heard
    assert all(payload[0] == 51 for payload in heard)
    assert all(isinstance(payload, bytes) for payload in heard)

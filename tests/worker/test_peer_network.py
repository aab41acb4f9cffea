"""Who may connect to whom: only nodes of one pool, and each only as itself."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from skyward.core.nodes.certificates import Authority
from skyward.worker.peer_network import TLSNetwork, own_addresses

HERE = "127.0.0.1"
LOAD = b"what only nodes of the pool may have"


class Node:
    """A node that sends its load to whoever proves to be of its pool."""

    def __init__(self, name: str, authority: Authority, folder: Path) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        identity = {"authority": authority.certificate, "certificate": authority.issue(name), "host": HERE}
        self.network = TLSNetwork(asyncio.get_running_loop(), identity, str(self.folder))
        place = self.network.listen(self._accept)
        assert place is not None
        self.port, self.addresses = place
        self._tasks: set[asyncio.Task[None]] = set()

    def _accept(self, sock: socket.socket) -> None:
        self._tasks.add(asyncio.create_task(self._serve(sock)))

    async def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError):
            _, writer = await self.network.streams(sock)
            writer.write(LOAD)
            writer.close()

    async def gets(self, name: str, port: int) -> bytes | None:
        """What the node with this name sends; None if it is not there."""
        try:
            reader, writer = await self.network.connect(name, (HERE, port))
        except OSError:
            return None
        data = b""
        with suppress(OSError):  # the other end may refuse us after we have accepted it
            data = await reader.read()
        writer.close()
        return data


@asynccontextmanager
async def nodes(folder: Path, *authorities: Authority) -> AsyncIterator[list[Node]]:
    """Nodes that listen, one for each authority given."""
    made = [Node(f"node-{i}", authority, folder) for i, authority in enumerate(authorities)]
    try:
        async with asyncio.timeout(20):
            yield made
    finally:
        for node in made:
            node.network.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_nodes_of_one_pool_find_each_other(tmp_path: Path) -> None:
    """At the address that the owner knows first, then at those that the node itself knows."""

    async def work() -> None:
        pool = Authority("pool")
        async with nodes(tmp_path, pool, pool) as (a, b):
            assert a.addresses == [HERE, *own_addresses()]
            assert await b.gets("node-0", a.port) == LOAD

    run(work())


def test_nodes_of_another_pool_are_refused(tmp_path: Path) -> None:
    """Despite equal names: another authority's certificates are refused on either side."""

    async def work() -> None:
        async with nodes(tmp_path, Authority("pool"), Authority("pool")) as (a, b):
            assert await b.gets("node-0", a.port) is None
            b.network._client_side.check_hostname = False
            b.network._client_side.verify_mode = ssl.CERT_NONE  # a thief does not mind whom he robs
            assert not await b.gets("node-0", a.port)

    run(work())


def test_a_node_that_is_somebody_else_is_refused(tmp_path: Path) -> None:
    """Private addresses are the same in many networks: whoever answers must be the node that was meant."""

    async def work() -> None:
        pool = Authority("pool")
        async with nodes(tmp_path, pool, pool, pool) as (a, b, c):
            assert await c.gets("node-1", a.port) is None
            assert await c.gets("node-1", b.port) == LOAD

    run(work())


def test_without_a_certificate_nothing_is_answered(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, Authority("pool")) as (a,):
            naked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            naked.check_hostname = False
            naked.verify_mode = ssl.CERT_NONE
            for context in (naked, None):
                reader, writer = await asyncio.open_connection(HERE, a.port, ssl=context)
                writer.write(bytes(100))
                with suppress(OSError):
                    assert await reader.read() == b""
                writer.close()

    run(work())


def test_the_key_stays_in_memory(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, Authority("pool")) as (a,):
            assert list(a.folder.iterdir()) == []

    run(work())

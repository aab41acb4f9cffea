"""From node to node over loopback: whole and partial blobs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from skyward.core.blobs.snapshots import digest
from skyward.core.nodes.certificates import Authority
from skyward.core.protocol.messages import Blob, Fetch, Kept, Listening, Message, Peers, Reached
from skyward.worker import peers as module
from skyward.worker.blob_store import Corrupt, Store
from skyward.worker.peer_network import TLSNetwork
from skyward.worker.peers import PeerExchange

DATA = os.urandom(3_000_000)
NAME = digest(memoryview(DATA))


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.005)


class Node:
    """One node: the parts of an agent that its `PeerExchange` uses."""

    def __init__(self, name: str, authority: Authority, folder: Path) -> None:
        self.name = name
        self.sent: list[Message] = []
        self.store = Store([str(folder)])
        (folder / name).mkdir()
        self.private = folder / name
        identity = {
            "authority": authority.certificate,
            "certificate": authority.issue(name),
            "host": "127.0.0.1",
        }
        loop = asyncio.get_running_loop()
        network = TLSNetwork(loop, identity, str(self.private))
        self.neighbours = PeerExchange(loop, network, name, self.store, self.keep, self.post)
        self.parts = 0

    def post(self, message: Message, buffers: Any) -> None:
        self.sent.append(message)

    def keep(self, blob: Blob, data: Any, peer: bool = False) -> None:
        self.parts += 1
        try:
            if self.store.add(blob.digest, blob.size, blob.offset, data, peer=peer):
                self.post(Kept(blob.digest, blob.size, None), ())
        except Corrupt as error:
            self.post(Kept(blob.digest, 0, str(error)), ())
        self.neighbours.grew()

    def give(self, start: int, end: int) -> None:
        """Receive a part from the owner."""
        self.keep(Blob(NAME, len(DATA), start), DATA[start:end])

    async def message(self, kind: type[Any]) -> Any:
        """Wait for its next message of a kind."""
        await until(lambda: any(isinstance(message, kind) for message in self.sent))
        found = next(message for message in self.sent if isinstance(message, kind))
        self.sent.remove(found)
        return found

    async def meets(self, *others: Node) -> None:
        """Introduce two nodes to each other, and wait until they are reachable."""
        for other in others:
            self.neighbours.meet(Peers({other.name: [other.port, "127.0.0.1"]}))
            assert await self.message(Reached) == Reached([other.name])

    def fetch(self, peer: str | None) -> None:
        self.neighbours.fetch(Fetch(NAME, len(DATA), peer))

    def content(self) -> bytes:
        return self.store.read(NAME, 0, len(DATA) + 1)


@asynccontextmanager
async def nodes(folder: Path, count: int, authorities: list[Authority] | None = None) -> AsyncIterator[list[Node]]:
    """Make that many nodes that listen, of one pool by default."""
    authorities = authorities or [Authority("pool")] * count
    made = [Node(f"node-{i}", authority, folder) for i, authority in enumerate(authorities)]
    try:
        for node in made:
            answer = await node.message(Listening)
            assert answer.addresses[0] == "127.0.0.1"
            node.port = answer.port
        yield made
    finally:
        for node in made:
            node.neighbours.close()
            node.store.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_a_blob_goes_from_node_to_node(tmp_path: Path) -> None:
    """Even if the server itself is still receiving it, or the client has a part of it."""

    async def work() -> None:
        async with nodes(tmp_path, 3) as (a, b, c):
            await b.meets(a)
            await c.meets(b)
            a.give(0, 1_000_000)
            c.give(0, 500_000)
            b.fetch("node-0")
            c.fetch("node-1")
            await until(lambda: c.store.have(NAME) == 1_000_000)
            assert not c.sent
            a.give(1_000_000, len(DATA))
            for node in (a, b, c):
                assert await node.message(Kept) == Kept(NAME, len(DATA), None)
                assert node.content() == DATA

    run(work())


@pytest.mark.slow
def test_a_server_that_has_nothing_yet_shows_that_it_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits far longer than it would for a dead one, until the blob begins."""
    monkeypatch.setattr(module, "_ALIVE", 0.01)
    monkeypatch.setattr(module, "_SILENCE", 0.5)

    async def work() -> None:
        async with nodes(tmp_path, 2) as (a, b):
            await b.meets(a)
            b.fetch("node-0")
            await asyncio.sleep(1.0)
            assert not b.sent
            a.give(0, len(DATA))
            assert (await b.message(Kept)).error is None

    run(work())


def test_what_is_served_is_not_removed(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (a, b):
            await b.meets(a)
            a.give(0, 1_000_000)
            b.fetch("node-0")
            await until(lambda: b.store.have(NAME))
            a.give(1_000_000, len(DATA))
            a.store.forget([NAME])
            assert (await b.message(Kept)).error is None
            assert b.content() == DATA
            await until(lambda: NAME not in a.store)  # and then it goes

    run(work())


def _closes(a: Node, b: Node) -> None:
    a.neighbours.close()


def _is_dropped(a: Node, b: Node) -> None:
    b.fetch(None)


@pytest.mark.parametrize("how", [_closes, _is_dropped])
def test_a_fetch_that_ends_early_reports_how_much_has_arrived(
    how: Callable[[Node, Node], None], tmp_path: Path
) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (a, b):
            await b.meets(a)
            a.give(0, 1_000_000)
            b.fetch("node-0")
            await until(lambda: b.store.have(NAME) == 1_000_000)
            how(a, b)
            answer = await b.message(Kept)
            assert answer.size == 1_000_000
            assert answer.error
            b.give(1_000_000, len(DATA))
            assert await b.message(Kept) == Kept(NAME, len(DATA), None)
            assert b.content() == DATA
            assert not b.sent

    run(work())


def test_a_silent_peer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that swallows everything: connecting has a limit, and so has waiting for the next answer."""
    monkeypatch.setattr(module, "_CONNECT", 0.2)
    monkeypatch.setattr(module, "_SILENCE", 0.2)
    monkeypatch.setattr(module, "_ALIVE", 60.0)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)  # it must hold the writer, which from Python 3.13 on closes when nobody does

    async def work() -> None:
        async with nodes(tmp_path, 2) as (a, b):
            await b.meets(a)
            b.fetch("node-0")  # which has nothing, and does not answer in time
            assert await b.message(Kept) == Kept(NAME, 0, "node-0: TimeoutError()")
            deaf = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
            b.neighbours._routes["node-0"] = "127.0.0.1", deaf.sockets[0].getsockname()[1]
            b.fetch("node-0")
            assert await b.message(Kept) == Kept(NAME, 0, "node-0: TimeoutError()")
            deaf.close()
            b.fetch("node-9")
            assert "not reachable" in (await b.message(Kept)).error

    run(work())


def test_wrong_bytes_are_not_kept(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (a, b):
            await b.meets(a)
            a.keep(Blob(NAME, len(DATA), 0), bytes([DATA[0] ^ 1]) + DATA[1:])
            b.fetch("node-0")
            assert await b.message(Kept) == Kept(NAME, 0, "it does not match its digest")
            assert NAME not in b.store
            b.give(0, len(DATA))
            assert b.content() == DATA

    run(work())

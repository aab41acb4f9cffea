"""Blobs from node to node, so that the owner uploads each of them once: a small server and its client.

The owner decides which node gets what from which; only when to give up is decided here. How nodes connect, and prove
who they are, is `peer_network`'s business. Then, big-endian::

    client  length of the digest u16 | offset u64 | digest      once; an empty digest only asks for an answer
    server  length u32 | bytes                                  repeated up to the blob's end

A length of 0 means that the server is alive and has no more at the moment: it may itself still be receiving the blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from skyward.core.protocol.messages import Blob, Fetch, Kept, Listening, Message, Peers, Reached
from skyward.core.protocol.wire import Buffer
from skyward.worker.blob_store import Store
from skyward.worker.peer_network import PeerNetwork, Streams

__all__ = ["PeerExchange"]

_REQUEST = struct.Struct("!HQ")
_LENGTH = struct.Struct("!I")
_PIECE = 256 * 1024  # bytes of one answer
_DIGEST = 256  # bytes at most
_PROBE = 5.0  # seconds for finding out whether a peer is reachable; nobody waits for it
_CONNECT = 2.0  # seconds for connecting to a peer that was reachable before
_ALIVE = 0.5  # seconds between two answers of a server that has no more at the moment
_SILENCE = 3.0  # seconds without an answer after which a peer counts as dead
_UNKNOWN = 30.0  # seconds for which a server waits for a blob to begin to arrive
_PROBES = 4  # at once
_ADDRESSES = 8  # of a peer that are tried
_MAX_CLIENTS = 32  # at once; more than the owner sends to one node
_STUCK = 30.0  # seconds that a client may take to accept a piece


class PeerExchange:
    """Exchanges blobs with the other nodes of the pool.

    Parameters
    ----------
    loop
        The agent's loop.
    network
        Connects to them; closed by this object.
    name
        This node's name.
    store
        The blobs to serve.
    keep
        Called with each part of a blob that arrives from a peer.
    post
        Sends a message to the owner.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        network: PeerNetwork,
        name: str,
        store: Store,
        keep: Callable[[Blob, Buffer, bool], None],
        post: Callable[[Message, Sequence[Buffer]], object],
    ) -> None:
        self.name = name
        self._loop = loop
        self._store = store
        self._keep = keep
        self._post = post
        self._network = network
        self._clients = 0
        self._routes: dict[str, tuple[str, int]] = {}  # peer -> where it answered
        self._fetches: dict[bytes, asyncio.Task[None]] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order, unlike a set, for runs that must replay
        self._probes = asyncio.Semaphore(_PROBES)
        self._more: asyncio.Future[None] = loop.create_future()
        if (place := network.listen(self._accept)) is not None:  # otherwise no peer hears of this node
            port, addresses = place
            post(Listening(port, addresses), ())

    def __repr__(self) -> str:
        return f"<PeerExchange of {self.name}: {len(self._routes)} reached, {len(self._fetches)} fetches>"

    def close(self) -> None:
        """Stop listening and fetching."""
        self._network.close()
        for task in (*self._tasks, *self._fetches.values()):
            task.cancel()

    def grew(self) -> None:
        """Wake up those who wait for a blob to grow."""
        self._more.set_result(None)
        self._more = self._loop.create_future()

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    # --- server ---

    def _accept(self, caller: Any) -> None:
        if self._clients >= _MAX_CLIENTS:  # anybody may connect, and open files are limited
            caller.close()
        else:
            self._spawn(self._serve(caller))

    async def _serve(self, caller: Any) -> None:
        self._clients += 1
        try:
            reader, connected = await self._network.streams(caller)
            with contextlib.closing(connected) as writer:
                async with asyncio.timeout(_PROBE):
                    length, offset = _REQUEST.unpack(await reader.readexactly(_REQUEST.size))
                    digest = await reader.readexactly(min(length, _DIGEST))
                self._store.use([digest])  # what is being served must not be removed
                try:
                    await (self._send(digest, offset, writer) if digest else self._write(b"", writer))
                finally:
                    self._store.free([digest])
        except (OSError, EOFError):
            pass  # the client notices, and reports it to the owner
        finally:
            self._clients -= 1

    async def _send(self, digest: bytes, offset: int, writer: asyncio.StreamWriter) -> None:
        """Send what is here, and then what arrives, up to the end."""
        known, began = False, self._loop.time()
        while True:
            more, piece = self._more, b""
            try:
                piece = self._store.read(digest, offset, _PIECE)
                known = True
            except KeyError:
                if known or self._loop.time() > began + _UNKNOWN:  # otherwise the owner's message is still on its way
                    return
            if not piece:
                if digest in self._store:
                    return
                await asyncio.wait((more,), timeout=_ALIVE)
                if more.done():
                    continue
            await self._write(piece, writer)
            offset += len(piece)

    async def _write(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        writer.writelines((_LENGTH.pack(len(piece)), piece))
        async with asyncio.timeout(_STUCK):
            await writer.drain()
        await asyncio.sleep(0)  # drain returns at once while the kernel accepts everything; others must not starve

    # --- client ---

    def meet(self, message: Peers) -> None:
        """Find out which peers are reachable, before that is needed."""
        for name, (port, *addresses) in message.peers.items():
            self._spawn(self._probe(name, port, [a for a in dict.fromkeys(addresses) if _is_address(a)][:_ADDRESSES]))

    async def _probe(self, name: str, port: int, addresses: list[str]) -> None:
        async with self._probes:
            # All are tried at once, since some may be behind a firewall and never answer.
            attempts = [self._loop.create_task(self._try(name, (address, port))) for address in addresses]
            for attempt in asyncio.as_completed(attempts):
                place = await attempt
                if place is not None:
                    self._routes[name] = place
                    self._post(Reached([name]), ())
                    return

    async def _try(self, name: str, place: tuple[str, int]) -> tuple[str, int] | None:
        with contextlib.suppress(OSError, EOFError):
            async with asyncio.timeout(_PROBE), self._connected(name, place) as (reader, writer):
                writer.write(_REQUEST.pack(0, 0))
                await reader.readexactly(_LENGTH.size)
                return place
        return None

    @contextlib.asynccontextmanager
    async def _connected(self, name: str, place: tuple[str, int]) -> AsyncIterator[Streams]:
        reader, writer = await self._network.connect(name, place)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()  # nothing that was sent is still needed

    def fetch(self, message: Fetch) -> None:
        """Begin to fetch a blob from a peer, or stop and report how much of it has arrived."""
        digest = message.digest
        task = self._fetches.pop(digest, None)
        if task is not None:
            task.cancel()
        if message.peer is not None:
            self._fetches[digest] = self._loop.create_task(self._fetch(message, message.peer))
        elif task is not None:
            self._gave_up(digest, "it took too long")

    def _gave_up(self, digest: bytes, why: str) -> None:
        self._post(Kept(digest, self._store.have(digest), why), ())

    async def _fetch(self, message: Fetch, peer: str) -> None:
        try:
            await self._copy(message, peer)
        except Exception as error:
            self._gave_up(message.digest, f"{peer}: {error!r}")
            if not isinstance(error, (OSError, EOFError)):
                raise
        finally:
            if self._fetches.get(message.digest) is asyncio.current_task():
                del self._fetches[message.digest]

    async def _copy(self, message: Fetch, peer: str) -> None:
        digest, size, _ = message
        if peer not in self._routes:
            raise ConnectionError("not reachable")
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(_CONNECT):
                connection = self._connected(peer, self._routes[peer])
                reader, writer = await stack.enter_async_context(connection)
            offset = self._store.have(digest)
            writer.write(_REQUEST.pack(len(digest), offset) + digest)
            while offset < size:
                async with asyncio.timeout(_SILENCE):
                    (count,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                    if count > min(_PIECE, size - offset):
                        raise ConnectionError("it sent more than was asked for")
                    piece = await reader.readexactly(count)
                if piece:
                    self._keep(Blob(digest, size, offset), piece, True)
                    offset += count
                    if self._store.have(digest) < offset < size:
                        return  # the store has dropped it


def _is_address(text: str) -> bool:
    """Whether it needs no name resolution, for which asyncio would start a thread."""
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False

"""Brings the pool's folders to nodes, before these get tasks.

A node says which chunks it lacks. They are sent as blobs, a few at a time, so that a folder of any size takes little
memory; `Distributor` decides whether they come from here or from another node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

from skyward.core.blobs.distributor import Distributor, LateBlob
from skyward.core.errors import VolumeFailed
from skyward.core.files.cut import cut
from skyward.core.files.folder import Folder
from skyward.core.files.requests import RequestRefused, Requests
from skyward.core.nodes.session import Session
from skyward.core.protocol.manifest import Manifest, Piece, chunk_size
from skyward.core.protocol.messages import Build, Mount
from skyward.core.protocol.wire import Buffer
from skyward.core.volumes import LocalVolume

__all__ = ["FolderSupply"]

_WINDOW = 12  # chunks on their way to one node
_FEW = 2  # of them at the beginning
_RECENT = 16  # chunks that were read last, which another node may need at once
_ROUNDS = 3  # times that chunks are sent, since the node's disk may hold wrong ones
_SILENT = 2.0  # seconds that may pass without a word about progress
_EVERY = 0.5  # seconds between two words
_NAME = 24  # bytes of a chunk's name


class _Content:
    """The content of one volume.

    Parameters
    ----------
    volume, folder
        The volume, and its folder.
    """

    def __init__(self, volume: LocalVolume, folder: Folder) -> None:
        self.volume = volume
        self.folder = folder
        self.read = 0  # bytes
        self._stopped = threading.Event()
        self._ready: asyncio.Future[tuple[Manifest, bytes]] | None = None
        self._pieces: dict[bytes, list[Piece]] = {}
        self._nodes = 0  # which are being supplied
        self._recent: OrderedDict[bytes, asyncio.Future[Buffer]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<_Content of {self.volume!r}>"

    async def manifest(self) -> tuple[Manifest, bytes]:
        """Read the folder, once; returns its manifest, and that as bytes."""
        if self._ready is None:
            loop = asyncio.get_running_loop()
            self._ready = asyncio.ensure_future(loop.run_in_executor(None, self._describe))
        return await asyncio.shield(self._ready)

    def _describe(self) -> tuple[Manifest, bytes]:
        """In a thread."""
        manifest = self.folder.manifest(self._progress)
        self._pieces = dict(zip(manifest.chunks, cut(self.folder.files), strict=True))
        return manifest, manifest.pack()

    def _progress(self, read: int) -> None:
        self.read = read
        if self._stopped.is_set():
            raise VolumeFailed("the pool was closed")

    def stop(self) -> None:
        """Stop reading soon."""
        self._stopped.set()

    def chunk(self, name: bytes) -> LateBlob:
        """Return a chunk, to be read when it is needed."""
        return LateBlob(chunk_size(name), partial(self._load, name))

    async def _load(self, name: bytes) -> Buffer:
        if (reading := self._recent.get(name)) is None:
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(None, self.folder.read, self._pieces[name], name)
            reading.add_done_callback(_told)
            if self._nodes:  # otherwise the one that was about to be sent it is gone
                self._recent[name] = reading
            while len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
        return await asyncio.shield(reading)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep recent chunks while a node is supplied in this block; free them after the last such block."""
        self._nodes += 1
        try:
            yield
        finally:
            self._nodes -= 1
            if not self._nodes:
                self._recent.clear()


class FolderSupply:
    """Brings folders to the nodes of one pool. Belongs to the event loop.

    Parameters
    ----------
    distributor
        Sends chunks.
    requests
        Asks nodes.
    volumes
        What to bring.
    """

    def __init__(
        self, distributor: Distributor, requests: Requests, volumes: Sequence[tuple[LocalVolume, Folder]]
    ) -> None:
        self._distributor = distributor
        self._requests = requests
        self._contents = [_Content(volume, folder) for volume, folder in volumes]
        self._reading: list[asyncio.Task[Any]] = []

    def __repr__(self) -> str:
        return f"<FolderSupply of {len(self._contents)} folders>"

    def begin(self) -> None:
        """Begin to read, while machines are still booting."""
        for content in self._contents:
            task = asyncio.ensure_future(content.manifest())
            task.add_done_callback(_told)
            self._reading.append(task)

    def stop(self) -> None:
        """Stop reading soon."""
        for content in self._contents:
            content.stop()

    async def bring(self, session: Session, report: Callable[[str], object]) -> None:
        """Bring all folders to a node.

        Parameters
        ----------
        session
            The node's; it is known to the distributor.
        report
            Called with a few words on how far it is, if that takes a while.

        Raises
        ------
        VolumeFailed
            That is not possible.
        NodeLost
            The node was lost meanwhile.
        """
        for content in self._contents:
            try:
                with content.in_use():
                    await _Delivery(self._distributor, self._requests, session, content, report).run()
            except RequestRefused as refusal:
                raise VolumeFailed(f"volume {content.folder.name!r} on {session.node}: {refusal}") from refusal


class _Delivery:
    """One folder on its way to one node."""

    def __init__(
        self,
        distributor: Distributor,
        requests: Requests,
        session: Session,
        content: _Content,
        report: Callable[[str], object],
    ) -> None:
        self._distributor = distributor
        self._requests = requests
        self._session = session
        self._content = content
        self._report = report
        self._arrived = 0  # bytes
        self._lacking = 0  # bytes

    async def run(self) -> None:
        watching = asyncio.create_task(self._watch())
        try:
            manifest, packed = await self._content.manifest()
            volume = self._content.volume
            place, writable = os.fsencode(volume.path), not volume.read_only
            number, reply = self._requests.ask(self._session, lambda request: Mount(request, place, writable), [packed])
            lacking = _names(await reply, manifest.chunks)
            self._distributor.holds(self._session.node, [name for name in manifest.chunks if name not in lacking])
            for _ in range(_ROUNDS):
                lacking = await self._build(number, [name for name in manifest.chunks if name in lacking], manifest)
                if not lacking:
                    return
        finally:
            watching.cancel()
        raise RequestRefused("its disk does not return what was written to it; is it failing, or full?")

    async def _build(self, mount: int, lacking: Sequence[bytes], manifest: Manifest) -> set[bytes]:
        """Send chunks and have the folder built; returns what is lacking still."""
        _, built = self._requests.ask(self._session, lambda request: Build(request, mount))
        sending = asyncio.create_task(self._send(list(dict.fromkeys(lacking))))
        try:
            await asyncio.wait((built, sending), return_when=asyncio.FIRST_COMPLETED)
            if not built.done() and not sending.cancelled() and sending.exception() is not None:
                sending.result()
            return _names(await built, manifest.chunks)
        finally:
            sending.cancel()

    async def _send(self, names: Sequence[bytes]) -> None:
        self._arrived, self._lacking = 0, sum(map(chunk_size, names))
        flying: set[asyncio.Future[None]] = set()
        for number, name in enumerate(names):
            # Slowly at first: a node may be about to find that it reaches others, which have the chunks.
            while len(flying) >= min(_WINDOW, _FEW + (number - len(flying)) // 2):
                flying = await self._land(flying)
            arrival = self._distributor.bring(self._session.node, name, self._content.chunk(name))
            arrival.add_done_callback(partial(self._count, chunk_size(name)))
            flying.add(arrival)
        while flying:
            flying = await self._land(flying)

    @staticmethod
    async def _land(flying: set[asyncio.Future[None]]) -> set[asyncio.Future[None]]:
        done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
        for arrival in done:
            arrival.result()
        return flying

    def _count(self, size: int, _: object) -> None:
        self._arrived += size

    async def _watch(self) -> None:
        """Report how far it is."""
        await asyncio.sleep(_SILENT)
        while True:
            self._report(self._progress())
            await asyncio.sleep(_EVERY)

    def _progress(self) -> str:
        name, total = self._content.folder.name, self._content.folder.size
        if not self._lacking:
            return f"reading {name}: {_megabytes(self._content.read, total)}"
        if self._arrived < self._lacking:
            return f"receiving {name}: {_megabytes(self._arrived, self._lacking)}"
        return f"building {name}"


def _told(done: asyncio.Future[Any]) -> None:
    """Those who wait for it get the error; if nobody does, it does not matter."""
    if not done.cancelled():
        done.exception()


def _megabytes(done: int, total: int) -> str:
    return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"


def _names(data: Buffer, known: Collection[bytes]) -> set[bytes]:
    """Read names of chunks, which must be known."""
    packed = bytes(data)
    names = {packed[at : at + _NAME] for at in range(0, len(packed), _NAME)}
    if unknown := names - set(known):
        raise RequestRefused(f"it asks for {len(unknown)} chunks that are not in the folder")
    return names

"""The owner's folders on this node, and this node's files for the owner. Slow work runs in threads."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import msgpack

from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.core.protocol.manifest import Manifest, chunk_size
from skyward.core.protocol.messages import (
    Attach,
    Build,
    Find,
    Flush,
    Message,
    Mount,
    Output,
    Read,
    Renew,
    Reply,
)
from skyward.core.protocol.wire import Buffer
from skyward.worker.chunk_cache import ChunkCache
from skyward.worker.file_search import find
from skyward.worker.folder_build import build
from skyward.worker.held_answers import HeldAnswers
from skyward.worker.own_folders import OwnFolders
from skyward.worker.place_links import link, unlink
from skyward.worker.task_blobs import TaskBlobs

if TYPE_CHECKING:
    from skyward.worker.bucket_volumes import BucketVolumes

__all__ = ["FileRequest", "FileService"]

FileRequest: TypeAlias = Mount | Build | Attach | Renew | Flush | Find | Read

_MARGIN = 64 * 2**20  # bytes of the disk to leave free for others
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True, eq=False)
class _Mounted:
    place: str  # as the owner wrote it
    writable: bool
    manifest: Manifest
    missing: set[bytes] = field(default_factory=set)  # chunks that have not arrived
    build: int | None = None  # the request to build it that waits for them
    error: str | None = None  # why a chunk could not be kept


class FileService:
    """Mounts folders, and finds and reads files.

    Parameters
    ----------
    loop
        The agent's loop.
    blobs
        Receives chunks.
    folders
        Where files are.
    work
        The tasks' working directory.
    post
        Sends a message to the owner.

    Attributes
    ----------
    on_writable
        Called when tasks can write to a bucket, with what has to hold their answers from then on.
    """

    on_writable: Callable[[HeldAnswers], object]

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        blobs: TaskBlobs,
        folders: OwnFolders,
        work: str,
        post: Callable[[Message, Sequence[Buffer]], object],
    ) -> None:
        self._loop = loop
        self._blobs = blobs
        self._folders = folders
        self._work = work
        self._post = post
        self._chunks = ChunkCache(folders.chunks)
        self._mounts: dict[int, _Mounted] = {}
        self._links: dict[str, str] = {}  # absolute places -> the folders that they lead to
        self._bucket_volumes: BucketVolumes | None = None
        self._held = HeldAnswers(loop, self._save)
        self._readable: list[str] = []  # places of buckets that tasks can't write to
        self._tasks: set[asyncio.Task[None]] = set()
        blobs.on_chunk = self._arrived

    def __repr__(self) -> str:
        return f"<FileService in {self._folders.base}: {len(self._mounts)} mounts>"

    def hear(self, message: FileRequest, buffers: Sequence[Buffer]) -> None:
        """Handle a request of the owner."""
        match message:
            case Mount():
                self._mount_soon(message, bytes(buffers[0]))
            case Build():
                self._build_soon(message)
            case Attach():
                data, volumes = bytes(buffers[0]), self._buckets()
                self._answer(message.request, lambda: self._attach(message, data, volumes))
            case Renew():
                keys = BucketKeys.unpack(bytes(buffers[0]))
                self._loop.run_in_executor(None, self._buckets().renew, message.attach, keys)
            case Flush():
                self._start(self._flush(message.request))
            case Find():
                self._find(message)
            case Read():
                path = os.path.join(os.fsencode(self._work), message.path)
                self._answer(message.request, lambda: _read(path, message))

    def close(self) -> None:
        """Remove the links of absolute mounts; the folders are removed with the agent's own."""
        for task in self._tasks:
            task.cancel()
        self._held.close()
        if self._bucket_volumes is not None:
            self._bucket_volumes.close()
        for place, target in self._links.items():
            unlink(place, target)

    def _answer(self, request: int, work: Callable[[], bytes]) -> None:
        """Answer with what `work` returns, which runs in a thread."""
        self._start(self._in_thread(request, work))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_thread(self, request: int, work: Callable[[], bytes]) -> None:
        try:
            data = await self._loop.run_in_executor(None, work)
        except (OSError, ValueError) as error:
            self._post(Reply(request, _reason(error)), ())
        else:
            self._post(Reply(request, None), [data])

    async def _flush(self, request: int) -> None:
        problem = await self._held.flush()
        self._post(Reply(request, problem), () if problem else [b""])

    def _warn(self, text: str) -> None:
        """Warn the user; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._post, Output(2), [f"skyward: {text}\n".encode()])

    # --- mounts ---

    def _mount_soon(self, message: Mount, packed: bytes) -> None:
        """Take the manifest of a folder, and answer which of its chunks are not here."""
        self._answer(message.request, lambda: self._mount(message, packed))

    def _mount(self, message: Mount, packed: bytes) -> bytes:
        """In a thread: check whether it can be built, and what is missing for it."""
        manifest = Manifest.unpack(packed)
        place = os.fsdecode(message.place)
        self._check_place(place)
        self._chunks.sweep()
        missing = set(manifest.chunks) - self._chunks.find(set(manifest.chunks))
        needed = manifest.size + sum(map(chunk_size, missing)) + _MARGIN
        if (free := self._chunks.make_room(needed)) < needed:
            raise OSError(
                errno.ENOSPC,
                f"it needs {needed / 1e9:.1f} GB of disk (with what is to arrive), and {free / 1e9:.1f} GB are free",
                self._folders.chunks,
            )
        self._loop.call_soon_threadsafe(self._expect, message, manifest, missing)
        return b"".join(sorted(missing))

    def _expect(self, message: Mount, manifest: Manifest, missing: set[bytes]) -> None:
        mounted = _Mounted(os.fsdecode(message.place), message.writable, manifest, missing)
        self._mounts[message.request] = mounted
        self._blobs.store.expect(self._chunks, manifest.chunks, missing)

    def _arrived(self, name: bytes, error: OSError | None) -> None:
        """A chunk has arrived, or can't be kept."""
        for mounted in self._mounts.values():
            if name in mounted.missing:
                if error is None:
                    mounted.missing.discard(name)
                else:
                    mounted.error = _reason(error)
                self._go_on(mounted)

    def _build_soon(self, message: Build) -> None:
        """Build a folder as soon as its chunks are here."""
        mounted = self._mounts[message.mount]
        mounted.build = message.request
        self._go_on(mounted)

    def _go_on(self, mounted: _Mounted) -> None:
        request = mounted.build
        if request is None or (mounted.missing and mounted.error is None):
            return
        mounted.build = None
        if mounted.error is not None:
            self._post(Reply(request, mounted.error), ())
        else:
            self._answer(request, lambda: self._build(request, mounted))

    def _build(self, request: int, mounted: _Mounted) -> bytes:
        """In a thread."""
        is_link = os.path.isabs(mounted.place)
        target = self._target(request, mounted.place)
        wrong = build(mounted.manifest, self._chunks.path, target, writable=mounted.writable)
        if not wrong and is_link:
            self._link(mounted.place, target)
        for name in wrong:
            self._chunks.drop(name)
        mounted.missing = set(wrong)
        if wrong:
            self._loop.call_soon_threadsafe(self._blobs.store.expect, self._chunks, wrong, set(wrong))
        return b"".join(wrong)

    def _check_place(self, place: str) -> None:
        """Refuse a place that exists; a link of a pool whose folder is gone is replaced."""
        if os.path.isabs(place) and os.path.lexists(place) and not _is_abandoned(place):
            whose = "another pool has a folder there" if os.path.islink(place) else "it exists on this node"
            raise FileExistsError(
                errno.EEXIST, f"{whose}, and nothing of it is replaced. Mount at another place", place
            )

    def _link(self, place: str, target: str) -> None:
        """Make a link from a place to a folder."""
        self._check_place(place)
        link(place, target)
        self._links[place] = target

    def _buckets(self) -> BucketVolumes:
        if self._bucket_volumes is None:
            from skyward.worker.bucket_volumes import BucketVolumes  # noqa: PLC0415 - few pools have buckets

            self._bucket_volumes = BucketVolumes(f"{self._folders.base}/buckets", self._warn)
        return self._bucket_volumes

    def _save(self, groups: frozenset[int] | None) -> str | None:
        """In a thread: see `Save`."""
        return None if self._bucket_volumes is None else self._bucket_volumes.save(groups)

    def _attach(self, message: Attach, packed: bytes, volumes: BucketVolumes) -> bytes:
        """In a thread: mount a bucket, or fetch what is in it."""
        place = os.fsdecode(message.place)
        self._check_place(place)
        target = self._target(message.request, place)
        bucket = Bucket.unpack(packed)
        if message.mounted:
            volumes.mount(message.request, bucket, target)
        else:
            volumes.bring(message.request, bucket, target, writable=message.writable)
        if os.path.isabs(place):
            self._link(place, target)
        if message.writable:
            self._loop.call_soon_threadsafe(self.on_writable, self._held)
        else:
            self._readable.append(place)
        return b""

    def _target(self, request: int, place: str) -> str:
        """The folder of what tasks find at a place."""
        return f"{self._folders.mounts}/{request}" if os.path.isabs(place) else f"{self._work}/{place}"

    # --- files for the owner ---

    def _find(self, message: Find) -> None:
        """List the files that match a pattern, except those that the owner has anyway."""
        places = [*self._readable, *(each.place for each in self._mounts.values() if not each.writable)]
        mine = [os.fsencode(f"{self._work}/{place}") for place in places]
        self._answer(
            message.request,
            lambda: msgpack.packb(find(os.fsencode(self._work), message.pattern, mine)),
        )


def _read(path: bytes, wanted: Read) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        data = os.pread(fd, wanted.length, wanted.offset)
        if (found.st_size, found.st_mtime_ns) != (wanted.size, wanted.changed) or len(data) < wanted.length:
            raise ValueError(
                f"{os.fsdecode(wanted.path)} has changed while it was being read; is a task still writing it?"
            )
    finally:
        os.close(fd)
    return data


def _is_abandoned(place: str) -> bool:
    """Whether a place is a link of ours that leads nowhere."""
    if not os.path.islink(place) or os.path.exists(place):
        return False
    return "/mounts/" in os.readlink(place)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"there is no room on the disk: {error.strerror} ({error.filename})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return str(error)

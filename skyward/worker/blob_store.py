"""Large buffers on a node, by the digest of their content: written once, memory-mapped by any number of slots.

They are files in shared memory if there is room, else in the temporary folder; failing both, they stay in the agent's
memory and are sent to slots as ordinary buffers. Chunks of mounted folders go to a cache on disk instead. Blobs grow as
their bytes arrive, and what has arrived can be read at once, by other nodes that need the same blob. Only the agent
writes here; it does not interpret the content.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from skyward.core.payload.shared_file import open_shared
from skyward.core.protocol.wire import Buffer
from skyward.worker import scratch
from skyward.worker.chunk_cache import ChunkCache

try:
    from xxhash import xxh3_128 as _hasher
except ImportError:  # a node may lack it; then only the length of what peers send is checked
    _hasher = None  # type: ignore[assignment, misc]
_HASHER: Callable[[], Any] | None = _hasher

__all__ = ["Corrupt", "Store", "sweep"]

PWrite: TypeAlias = Callable[[int, memoryview, int], int]
OpenFile: TypeAlias = Callable[[str, int, int], tuple[int, str]]
MakeFolder: TypeAlias = Callable[[str, str], tuple[str, int]]

_KIND = "store"
_MARGIN = 64 * 1024 * 1024  # bytes of shared memory to leave free for others
_STEP = 4 * 1024 * 1024  # bytes copied at a time
_HASHED = 8 + 16  # bytes of a digest: length and xxh3-128


def _open_file(path: str, inode: int, size: int) -> tuple[int, str]:
    """Open another process's `SharedFile`; returns its descriptor, and the path by which slots can open that."""
    fd = open_shared(path, inode, size)
    return fd, f"/proc/{os.getpid()}/fd/{fd}"


class Corrupt(ValueError):
    """What peers sent does not match its digest."""


class _Growing:
    """A blob whose bytes are arriving."""

    __slots__ = ("early", "fd", "hash", "have", "memory", "parents", "part", "path", "problems", "pwrite", "size")

    def __init__(self, size: int, parents: list[str], pwrite: PWrite) -> None:
        self.size = size
        self.pwrite = pwrite
        self.have = 0  # bytes from the beginning that have arrived
        self.early: dict[int, Buffer] = {}  # what arrived after a gap, by its offset
        self.hash: Any = None  # of what has arrived, once a peer sends some of it
        self.parents = parents  # folders in which a file can still be tried
        self.problems: list[str] = []
        self.path = ""
        self.part = ""  # the file's name so far: no half-written blob is ever found
        self.fd = -1
        self.memory: bytearray | None = None  # if no file can be made

    def next(self) -> memoryview | None:
        """Return bytes that continue what has arrived."""
        for offset, data in list(self.early.items()):
            if offset <= self.have:
                del self.early[offset]
                if offset + len(data) > self.have:
                    return memoryview(data)[self.have - offset :]
        return None

    def read(self, offset: int, count: int) -> bytes:
        """Return what has arrived of these bytes."""
        count = max(0, min(count, self.have - offset))
        if self.memory is not None:
            return bytes(memoryview(self.memory)[offset : offset + count])
        return os.pread(self.fd, count, offset)

    def parts(self) -> Iterator[bytes]:
        """Read all that has arrived, step by step."""
        return (self.read(start, _STEP) for start in range(0, self.have, _STEP))

    def write(self, data: memoryview) -> None:
        """Append bytes."""
        if self.memory is not None:
            self.memory[self.have : self.have + len(data)] = data
            return
        done = 0
        while done < len(data):
            done += self.pwrite(self.fd, data[done : done + _STEP], self.have + done)

    def drop_file(self) -> None:
        """Remove the file, which is not needed or continued elsewhere."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            Path(self.part).unlink()


class Store:
    """The blobs of one node.

    Parameters
    ----------
    folders
        Where to make private folders, best first; by default shared memory, then the temporary folder.
    max_adopted
        Maximum number of other processes' files to keep open.
    pwrite
        Writes some bytes to an open file at an offset; returns how many.
    open_file
        Opens another process's `SharedFile` of that path, inode and size; returns its descriptor, and the path by which
        slots can open that. Raises OSError if it is gone.
    make_folder
        Makes a private folder in a parent, of a kind; see `scratch.make`.
    """

    def __init__(
        self,
        folders: Iterable[str] | None = None,
        max_adopted: int = 200,
        pwrite: PWrite = os.pwrite,
        open_file: OpenFile = _open_file,
        make_folder: MakeFolder = scratch.make,
    ) -> None:
        self._parents = list(folders) if folders is not None else _parents()
        self._pwrite, self._open_file, self._make_folder = pwrite, open_file, make_folder
        self._folders: dict[str, str] = {}  # parent -> private folder in it
        self._locks: list[int] = []
        self._paths: dict[bytes, str] = {}
        self._max_adopted = max_adopted
        self._adopted: dict[bytes, int] = {}  # descriptors that keep other processes' files
        self._memory: dict[bytes, bytearray] = {}
        self._growing: dict[bytes, _Growing] = {}
        self._users: Counter[bytes] = Counter()
        self._forgotten: set[bytes] = set()
        self._latest: dict[bytes, int] = {}  # number of the last message that contained some of it
        self._cached: dict[bytes, ChunkCache] = {}  # blobs that belong in a cache on disk
        self.problem: str | None = None
        """Why the last blob could not be written to a file, if so."""

    def __repr__(self) -> str:
        files, adopted = len(self._paths) - len(self._adopted), len(self._adopted)
        return (
            f"<Store of {files} files, {adopted} adopted, {len(self._memory)} in memory, {len(self._growing)} growing>"
        )

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._paths or digest in self._memory

    def expect(self, cache: ChunkCache, names: Iterable[bytes], missing: Collection[bytes]) -> None:
        """Serve blobs from a cache on disk, and write those that are missing there into it.

        Parameters
        ----------
        cache
            Where they are. They stay when they are forgotten, and when this store is closed.
        names, missing
            Digests of the blobs, and of those that are to arrive.
        """
        for name in names:
            self._cached[name] = cache
            if name in missing:
                self._paths.pop(name, None)
            else:
                self._paths[name] = cache.path(name)

    def is_cached(self, digest: bytes) -> bool:
        """Whether a blob belongs in a cache on disk."""
        return digest in self._cached

    def add(self, digest: bytes, size: int, offset: int, data: Buffer, *, peer: bool = False, number: int = 0) -> bool:
        """Keep a part of a blob; parts may arrive in any order and more than once.

        Parameters
        ----------
        digest, size, offset, data
            Which blob, its size in bytes, and a part of it.
        peer
            Whether another node sent it.
        number
            Number of the owner's message; see `forget`.

        Returns
        -------
        bool
            Whether to report to the sender that the blob is whole: this completed it, or was the end of a whole one.

        Raises
        ------
        Corrupt
            The blob does not match its digest, and some of it came from a `peer`. It has been removed.
        OSError
            It belongs in a cache, and can't be written there.
        """
        try:
            return self._add(digest, size, offset, data, peer=peer, number=number)
        except OSError:
            if (growing := self._growing.pop(digest, None)) is not None:
                growing.drop_file()
            raise

    def _add(self, digest: bytes, size: int, offset: int, data: Buffer, *, peer: bool, number: int) -> bool:
        self._forgotten.discard(digest)
        self._latest[digest] = max(self._latest.get(digest, 0), number)
        if digest in self:
            return offset + len(data) == size
        growing = self._growing.get(digest)
        if growing is None:
            growing = self._growing[digest] = _Growing(size, list(self._parents), self._pwrite)
            self._open(digest, growing)
        if peer and growing.hash is None and _HASHER is not None and len(digest) == _HASHED:
            growing.hash = _HASHER()
            for part in growing.parts():
                growing.hash.update(part)
        growing.early[offset] = data
        while (more := growing.next()) is not None:
            self._append(digest, growing, more)
        if growing.have < size:
            return False
        self._finish(digest, growing)
        return True

    def holds(self, digest: bytes, offset: int) -> bool:
        """Whether a part that was added is kept in its buffer, until what precedes it has arrived."""
        growing = self._growing.get(digest)
        return growing is not None and offset in growing.early

    def _append(self, digest: bytes, growing: _Growing, data: memoryview) -> None:
        while True:
            try:
                growing.write(data)
                break
            except OSError as error:
                if digest in self._cached:
                    raise
                growing.problems.append(str(error))
                self._move(digest, growing)
        growing.have += len(data)
        if growing.hash is not None:
            growing.hash.update(data)

    def _finish(self, digest: bytes, growing: _Growing) -> None:
        del self._growing[digest]
        if growing.hash is not None and growing.size.to_bytes(8, "big") + growing.hash.digest() != digest:
            growing.drop_file()
            self._latest.pop(digest, None)
            raise Corrupt("it does not match its digest")
        if growing.memory is not None:
            self._memory[digest] = growing.memory
        else:
            os.close(growing.fd)
            Path(growing.part).rename(growing.path)
            self._paths[digest] = growing.path

    def _open(self, digest: bytes, growing: _Growing) -> None:
        """Make a file in the next folder that allows it; if none does, use memory."""
        if (cache := self._cached.get(digest)) is not None:
            growing.path = cache.path(digest)
            growing.fd, growing.part = cache.open(digest)
            return
        while growing.parents:
            parent = growing.parents.pop(0)
            try:
                if parent == "/dev/shm":  # noqa: S108 - there the kernel would kill the process instead of refusing
                    self._check_room(parent)
                growing.path = f"{self._folder(parent)}/{digest.hex()}"
                growing.part = f"{growing.path}.part"
                growing.fd = os.open(growing.part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                return
            except OSError as error:
                growing.problems.append(str(error))
        self.problem = "; ".join(growing.problems)
        growing.memory = bytearray(growing.size)

    def adopt(self, digest: bytes, path: str, inode: int, size: int) -> None:
        """Open a blob that is another process's `SharedFile`.

        Parameters
        ----------
        digest
            Which blob.
        path, inode, size
            The file.

        Raises
        ------
        OSError
            The file can't be opened, or is another one.
        """
        self._forgotten.discard(digest)
        if digest not in self:
            if len(self._adopted) >= self._max_adopted:
                raise OSError(errno.EMFILE, "too many open files of other processes")
            self._adopted[digest], self._paths[digest] = self._open_file(path, inode, size)
            if (growing := self._growing.pop(digest, None)) is not None:  # another node was too slow to send it
                growing.drop_file()

    def result_files(self) -> str | None:
        """Return a folder for results that slots leave to the owner; None if none can be made."""
        for parent in self._parents:
            with contextlib.suppress(OSError):
                return self._folder(parent)
        return None

    def _check_room(self, parent: str) -> None:
        """Check that all growing blobs will fit; raises OSError if not."""
        room = os.statvfs(parent)
        missing = sum(growing.size - growing.have for growing in self._growing.values())
        if room.f_bavail * room.f_frsize < missing + _MARGIN:
            raise OSError(errno.ENOSPC, "no room in", parent)

    def _move(self, digest: bytes, growing: _Growing) -> None:
        """Continue in the next folder that has room."""
        here = b"".join(growing.parts())  # rare, so it may take memory
        while True:
            growing.drop_file()
            growing.have = 0
            self._open(digest, growing)
            try:
                growing.write(memoryview(here))
            except OSError as error:
                growing.problems.append(str(error))
                continue
            growing.have = len(here)
            return

    def read(self, digest: bytes, offset: int, count: int) -> bytes:
        """Read a part of a blob, as far as it has arrived.

        Parameters
        ----------
        digest
            Which blob.
        offset, count
            Where the part begins, and its size in bytes.

        Raises
        ------
        KeyError
            The blob is unknown.
        """
        if digest in self._growing:
            return self._growing[digest].read(offset, count)
        if digest in self._memory:
            return bytes(memoryview(self._memory[digest])[offset : offset + count])
        with Path(self._paths[digest]).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), count, offset)

    def have(self, digest: bytes) -> int:
        """Return how many bytes from the beginning of a growing blob have arrived."""
        growing = self._growing.get(digest)
        return growing.have if growing is not None else 0

    def find(self, digest: bytes) -> str | bytearray:
        """Return the path of a blob, or its bytes if it has no file; KeyError if it is not here."""
        return self._paths[digest] if digest in self._paths else self._memory[digest]

    def use(self, digests: Iterable[bytes]) -> None:
        """Keep these until `free`, even if they are forgotten, since a task needs them."""
        self._users.update(digests)

    def free(self, digests: Iterable[bytes]) -> None:
        """Undo one `use` of these."""
        for digest in digests:
            self._users[digest] -= 1
            if self._users[digest] <= 0:
                del self._users[digest]
                if digest in self._forgotten:
                    self._remove(digest)

    def forget(self, digests: Iterable[bytes], number: float = math.inf) -> None:
        """Remove these, which nobody will ask for again; those in use are removed later.

        What the owner began to send again after the message with this `number` stays, even if it arrived first: a blob
        may take a faster stream than a small message.
        """
        for digest in digests:
            if self._latest.get(digest, 0) > number:
                continue
            if self._users[digest] > 0:
                self._forgotten.add(digest)
            else:
                self._remove(digest)

    def close(self) -> None:
        """Remove everything."""
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        for fd in (*self._locks, *self._adopted.values()):
            os.close(fd)
        self._adopted.clear()
        self._folders.clear()
        self._locks.clear()
        for growing in self._growing.values():
            with contextlib.suppress(OSError):
                growing.drop_file()
        self._growing.clear()
        self._paths.clear()
        self._memory.clear()

    def _remove(self, digest: bytes) -> None:
        self._forgotten.discard(digest)
        self._latest.pop(digest, None)
        self._memory.pop(digest, None)
        growing = self._growing.pop(digest, None)
        if growing is not None:
            growing.drop_file()
        path = self._paths.pop(digest, None)
        if digest in self._adopted:
            os.close(self._adopted.pop(digest))
        elif path is not None and digest not in self._cached:
            with contextlib.suppress(OSError):
                Path(path).unlink()

    def _folder(self, parent: str) -> str:
        if parent not in self._folders:
            self._folders[parent], lock = self._make_folder(parent, _KIND)
            self._locks.append(lock)
        return self._folders[parent]


def _parents() -> list[str]:
    return ["/dev/shm", tempfile.gettempdir()]  # noqa: S108 - private folders are made there


def sweep() -> None:
    """Remove the stores of agents that were killed."""
    for parent in _parents():
        scratch.sweep(parent, _KIND)

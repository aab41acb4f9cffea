"""Large buffers on a node, by the digest of their content: written once, memory-mapped by any number of slots.

They lie in shared memory where there is room, else in the temporary folder, else they stay in the agent's memory and go
to slots as ordinary buffers. They grow as their bytes arrive, and what is there can be read by then, for nodes that are
to have the same. Only the agent writes here; it does not look into them.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from skyward.core.payload.shared_file import open_shared
from skyward.core.protocol.wire import Buffer
from skyward.worker import scratch

try:
    from xxhash import xxh3_128 as _hasher
except ImportError:  # a node may lack it; then what peers send must only have the right length
    _hasher = None  # type: ignore[assignment, misc]
_HASHER: Callable[[], Any] | None = _hasher

__all__ = ["Corrupt", "Store", "sweep"]

_KIND = "store"
_MARGIN = 64 * 1024 * 1024  # bytes of shared memory that are left to others
_STEP = 4 * 1024 * 1024  # bytes copied at a time
_HASHED = 8 + 16  # bytes of a digest: length and xxh3-128


class Corrupt(ValueError):
    """What peers sent is not what its digest says."""


class _Growing:
    """A blob whose bytes arrive."""

    __slots__ = ("early", "fd", "hash", "have", "memory", "parents", "path", "problems", "size")

    def __init__(self, size: int, parents: list[str]) -> None:
        self.size = size
        self.have = 0  # bytes from the beginning that are here
        self.early: dict[int, Buffer] = {}  # what came after a gap, by its offset
        self.hash: Any = None  # of what is here, once a peer sends some of it
        self.parents = parents  # where a file may still be tried
        self.problems: list[str] = []
        self.path = ""
        self.fd = -1  # of the file, under another name so that no half-written blob is ever found
        self.memory: bytearray | None = None  # where no file can be had

    def next(self) -> memoryview | None:
        """Bytes that continue what is here."""
        for offset, data in list(self.early.items()):
            if offset <= self.have:
                del self.early[offset]
                if offset + len(data) > self.have:
                    return memoryview(data)[self.have - offset :]
        return None

    def read(self, offset: int, count: int) -> bytes:
        """What is here of these bytes."""
        count = max(0, min(count, self.have - offset))
        if self.memory is not None:
            return bytes(memoryview(self.memory)[offset : offset + count])
        return os.pread(self.fd, count, offset)

    def write(self, data: memoryview) -> None:
        """Put bytes at the end."""
        if self.memory is not None:
            self.memory[self.have : self.have + len(data)] = data
            return
        done = 0
        while done < len(data):
            done += os.pwrite(self.fd, data[done : done + _STEP], self.have + done)

    def drop_file(self) -> None:
        """It is not wanted, or goes on elsewhere."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            Path(f"{self.path}.part").unlink()


class Store:
    """The blobs of one node.

    Parameters
    ----------
    folders
        Where to make private folders, best first; None: shared memory, then the temporary folder.
    max_adopted
        Files of other processes that are kept open.
    """

    def __init__(self, folders: Iterable[str] | None = None, max_adopted: int = 200) -> None:
        self._parents = list(folders) if folders is not None else _parents()
        self._folders: dict[str, str] = {}  # parent -> our folder in it
        self._locks: list[int] = []
        self._paths: dict[bytes, str] = {}
        self._max_adopted = max_adopted
        self._adopted: dict[bytes, int] = {}  # those whose file is another process's: our descriptor keeps it
        self._memory: dict[bytes, bytearray] = {}
        self._growing: dict[bytes, _Growing] = {}
        self._users: Counter[bytes] = Counter()
        self._forgotten: set[bytes] = set()
        self._latest: dict[bytes, int] = {}  # number of the last message that brought some of it
        self.problem: str | None = None
        """Why the last blob could not be written to a file."""

    def __repr__(self) -> str:
        files, adopted = len(self._paths) - len(self._adopted), len(self._adopted)
        return (
            f"<Store of {files} files, {adopted} adopted, {len(self._memory)} in memory, {len(self._growing)} growing>"
        )

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._paths or digest in self._memory

    def add(self, digest: bytes, size: int, offset: int, data: Buffer, *, peer: bool = False, number: int = 0) -> bool:
        """Keep a part of a blob, which may come in any order and more than once.

        Parameters
        ----------
        peer
            Whether a peer sent it.
        number
            Of the owner's message; see `forget`.

        Returns
        -------
        bool
            Whether its sender is to be told that the blob is whole: this made it so, or was the end of one that is.

        Raises
        ------
        Corrupt
            It was whole, but not what its digest says, and some of it came from a `peer`. Nothing of it is left.
        """
        self._forgotten.discard(digest)
        self._latest[digest] = max(self._latest.get(digest, 0), number)
        if digest in self:
            return offset + len(data) == size
        growing = self._growing.get(digest)
        if growing is None:
            growing = self._growing[digest] = _Growing(size, list(self._parents))
            self._open(digest, growing)
        if peer and growing.hash is None and _HASHER is not None and len(digest) == _HASHED:
            growing.hash = _HASHER()
            for start in range(0, growing.have, _STEP):
                growing.hash.update(growing.read(start, _STEP))
        growing.early[offset] = data
        while (part := growing.next()) is not None:
            self._append(digest, growing, part)
        if growing.have < size:
            return False
        self._finish(digest, growing)
        return True

    def holds(self, digest: bytes, offset: int) -> bool:
        """Whether a part that was added is kept as it came, until what is before it has come."""
        growing = self._growing.get(digest)
        return growing is not None and offset in growing.early

    def _append(self, digest: bytes, growing: _Growing, data: memoryview) -> None:
        while True:
            try:
                growing.write(data)
                break
            except OSError as error:
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
            raise Corrupt("it is not what its digest says")
        if growing.memory is not None:
            self._memory[digest] = growing.memory
        else:
            os.close(growing.fd)
            Path(f"{growing.path}.part").rename(growing.path)
            self._paths[digest] = growing.path

    def _open(self, digest: bytes, growing: _Growing) -> None:
        """Make a file in the next place that allows one; if none does, take memory."""
        while growing.parents:
            parent = growing.parents.pop(0)
            try:
                if parent == "/dev/shm":  # noqa: S108 - there the kernel would kill instead of refusing
                    self._check_room(parent)
                growing.path = f"{self._folder(parent)}/{digest.hex()}"
                mode = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                growing.fd = os.open(f"{growing.path}.part", mode, 0o600)
                return
            except OSError as error:
                growing.problems.append(str(error))
        self.problem = "; ".join(growing.problems)
        growing.memory = bytearray(growing.size)

    def adopt(self, digest: bytes, path: str, inode: int, size: int) -> None:
        """Keep a blob that is another process's `SharedFile`. OSError if it can't be opened."""
        self._forgotten.discard(digest)
        if digest not in self:
            if len(self._adopted) >= self._max_adopted:
                raise OSError(errno.EMFILE, "too many files of other processes")
            fd = self._adopted[digest] = open_shared(path, inode, size)
            self._paths[digest] = f"/proc/{os.getpid()}/fd/{fd}"

    def result_files(self) -> str | None:
        """A folder for what slots leave to the owner, the first that can be had."""
        for parent in self._parents:
            with contextlib.suppress(OSError):
                return self._folder(parent)
        return None

    def _check_room(self, parent: str) -> None:
        """Whether all that grows will fit."""
        room = os.statvfs(parent)
        missing = sum(growing.size - growing.have for growing in self._growing.values())
        if room.f_bavail * room.f_frsize < missing + _MARGIN:
            raise OSError(errno.ENOSPC, "no room in", parent)

    def _move(self, digest: bytes, growing: _Growing) -> None:
        """Go on in the next place that has room."""
        steps = range(0, growing.have, _STEP)
        here = b"".join(growing.read(start, _STEP) for start in steps)  # rare, so memory may be taken
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
        """At most so many bytes of a blob, as far as it is here; KeyError if nothing is known of it."""
        if digest in self._growing:
            return self._growing[digest].read(offset, count)
        if digest in self._memory:
            return bytes(memoryview(self._memory[digest])[offset : offset + count])
        with Path(self._paths[digest]).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), count, offset)

    def have(self, digest: bytes) -> int:
        """How many bytes from the beginning of a growing blob are here."""
        growing = self._growing.get(digest)
        return growing.have if growing is not None else 0

    def find(self, digest: bytes) -> str | bytearray:
        """The path of a blob, or its bytes if it has no file; KeyError if it is not here."""
        return self._paths[digest] if digest in self._paths else self._memory[digest]

    def use(self, digests: Iterable[bytes]) -> None:
        """A task needs these: they stay until `free`, also when they are forgotten."""
        self._users.update(digests)

    def free(self, digests: Iterable[bytes]) -> None:
        """A task does not need these any more."""
        for digest in digests:
            self._users[digest] -= 1
            if self._users[digest] <= 0:
                del self._users[digest]
                if digest in self._forgotten:
                    self._remove(digest)

    def forget(self, digests: Iterable[bytes], number: float = math.inf) -> None:
        """Nobody will ask for these again; those in use go later.

        Said with the message of this `number`. What the owner began to send again since then stays, though it came
        first: a blob may take a quicker stream than a small message.
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
        elif path is not None:
            with contextlib.suppress(OSError):
                Path(path).unlink()

    def _folder(self, parent: str) -> str:
        if parent not in self._folders:
            self._folders[parent], lock = scratch.make(parent, _KIND)
            self._locks.append(lock)
        return self._folders[parent]


def _parents() -> list[str]:
    return ["/dev/shm", tempfile.gettempdir()]  # noqa: S108 - private folders are made there


def sweep() -> None:
    """Remove the stores of agents that were killed."""
    for parent in _parents():
        scratch.sweep(parent, _KIND)

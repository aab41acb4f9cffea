"""Copies of the large buffers of tasks, one for each content, named by its digest."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from mmap import mmap
from typing import Any, TypeAlias

import xxhash

from skyward.core.payload.shared_file import SharedFile
from skyward.core.protocol.buffers import PAGED, BufferPool
from skyward.core.system import open_files

__all__ = ["MakeFile", "Snapshot", "Snapshots", "blob_name", "digest", "owner_of"]

Snapshot = mmap | bytes | SharedFile
"""A copy of a buffer."""
MakeFile: TypeAlias = Callable[[memoryview, Callable[[memoryview], object]], SharedFile]
"""Makes a `SharedFile`, with the same arguments."""

_MAX_FILES = 200  # open at once, of copies in use and of idle ones each; a process may often open only 1024
_OTHERS = 16  # files left for other uses where a process may open few
_MAX_PLACES = 1024
_SHARE = 0.25  # of the machine's memory may be taken by idle copies, as by a node's store
_MAX_POOLED = 64 << 20  # bytes of freed memory kept for reuse, and of memory that is about to be freed


def digest(buffer: memoryview) -> bytes:
    """Return the name of a buffer's content: its length and xxh3-128.

    The hash need not be cryptographic: both ends belong to the same user, who gains nothing from a deliberate
    collision. The probability that any two of 2**32 buffers collide by chance is 2**-65.
    """
    return blob_name(len(buffer), xxhash.xxh3_128_digest(buffer))


def blob_name(size: int, content: bytes) -> bytes:
    """Return the `digest` of a buffer of that size, given the xxh3-128 of its content."""
    return size.to_bytes(8, "big") + content


def _fill(copy: mmap, buffer: memoryview) -> None:
    """Copy bytes; with numpy if it is loaded, since that lets other threads send meanwhile."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        copy[:] = buffer
    else:
        numpy.copyto(numpy.frombuffer(copy, numpy.uint8), numpy.frombuffer(buffer, numpy.uint8))


def _references(copies: list[Any], index: int) -> int:
    """Return the number of references to an element, ours included; those of memoryviews and their slices count."""
    return sys.getrefcount(copies[index])


_UNUSED = _references([object()], 0)


class Snapshots:
    """Copies of large buffers as they were when a task was submitted, one for each content.

    The user may change an array as soon as `submit` has returned, while its bytes are sent later, to one node after
    another. Without a copy a node would receive bytes that don't match the digest, and so would every later task with
    that digest. Thread-safe.

    Parameters
    ----------
    shared
        Make the copies files in memory, which nodes on this machine map instead of receiving the bytes. They stay for
        later calls, since the nodes keep the same memory in their stores.
    make_file
        Makes those files.
    """

    def __init__(self, shared: bool = False, make_file: MakeFile = SharedFile) -> None:
        self._shared, self._make_file = shared, make_file
        self._lock = threading.Lock()  # guards what follows, down to _buffer_pool
        self._kept: dict[bytes, tuple[Snapshot, int]] = {}  # digest -> the bytes, and the number of holders
        self._idle: OrderedDict[bytes, Snapshot] = OrderedDict()  # without holders; longest idle first
        self._idle_size = 0
        self._budget = _SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if shared else 0
        self._left: list[mmap] = []  # without holders, but possibly still on their way to a node in part
        self._buffer_pool = BufferPool(_MAX_POOLED)
        self._places: set[tuple[int, int, int]] = set()  # where copied arrays were
        self.dropped: deque[bytes] = deque()
        """What was released by the garbage collector, which must not wait for the lock, and is still to be let go."""

    def __repr__(self) -> str:
        return f"<Snapshots {len(self._kept)}, {sum(len(data) for data, _ in self._kept.values()):,} bytes>"

    def take(self, buffer: memoryview, *, is_new: bool = False) -> tuple[bytes, Snapshot]:
        """Return digest and copy of a buffer for one task; tasks with equal bytes share the copy.

        Parameters
        ----------
        buffer
            The bytes.
        is_new
            Equal bytes probably were not copied before, so the buffer is copied without being hashed first, unless an
            array at the same place was.
        """
        if not is_new or owner_of(buffer)[1] in self._places:
            name = digest(buffer)
            data = self.hold(name)
            if data is not None:
                return name, data
        return self.copy(buffer)

    def copy(self, buffer: memoryview) -> tuple[bytes, Snapshot]:
        """Copy a buffer for one task; return the digest of the copy, and the copy or an equal one made meanwhile."""
        name, copy = self._copy(buffer)
        data = self._hold(name, copy)
        assert data is not None
        if len(self._places) >= _MAX_PLACES:
            self._places.clear()
        self._places.add(owner_of(buffer)[1])
        return name, data

    def hold(self, name: bytes) -> Snapshot | None:
        """Hold the copy of that digest until `release` or `drop`; None if there is none."""
        return self._hold(name, None)

    def _copy(self, buffer: memoryview) -> tuple[bytes, Snapshot]:
        """Copy a buffer; the digest is that of the copy, since another thread may write to the buffer meanwhile."""
        if self._shared and self._may_open():
            with contextlib.suppress(OSError):
                content = xxhash.xxh3_128()
                file = self._make_file(buffer, content.update)
                return blob_name(len(buffer), content.digest()), file
        copy: mmap | bytes
        if len(buffer) < PAGED:
            copy = bytes(buffer)
        else:
            with self._lock:
                copy = self._room(len(buffer))
            _fill(copy, buffer)
        return digest(memoryview(copy)), copy

    def _may_open(self) -> bool:
        """Whether a copy may be a file: if the process may open few, others need them more."""
        limit = open_files.limit()
        few = len(self._kept) < min(_MAX_FILES, limit // 5) and len(SharedFile.open) < 2 * limit // 5
        return few and (limit > 4 * _MAX_FILES or open_files.left() > _OTHERS)

    def _room(self, size: int) -> mmap:
        """Return memory for a copy, preferably that of a former copy that is no longer referred to."""
        for index in reversed(range(len(self._left))):
            if _references(self._left, index) == _UNUSED:
                self._buffer_pool.give(self._left.pop(index))
        return self._buffer_pool.take(size)

    def _hold(self, name: bytes, copy: Snapshot | None) -> Snapshot | None:
        with self._lock:
            self._purge()
            if name in self._idle:
                copy = self._idle.pop(name)
                self._idle_size -= len(copy)
            data, holders = self._kept.get(name, (copy, 0))
            if data is not None:
                self._kept[name] = data, holders + 1
            return data

    def release(self, names: Iterable[bytes]) -> None:
        """Release copies of a task that has settled."""
        with self._lock:
            self._purge()
            for name in names:
                self._let_go(name)

    def drop(self, names: Iterable[bytes]) -> None:
        """Release copies now or a little later; may be called from anywhere, finalizers included."""
        self.dropped.extend(names)
        if self._lock.acquire(blocking=False):
            try:
                self._purge()
            finally:
                self._lock.release()

    def _purge(self) -> None:
        while self.dropped:
            self._let_go(self.dropped.popleft())

    def _let_go(self, name: bytes) -> None:
        data, holders = self._kept.pop(name)
        if holders > 1:
            self._kept[name] = data, holders - 1
            return
        self._idle[name] = data
        self._idle_size += len(data)
        max_idle = min(_MAX_FILES, open_files.limit() // 5)
        while self._idle and (self._idle_size > self._budget or len(self._idle) > max_idle):
            data = self._idle.popitem(last=False)[1]
            self._idle_size -= len(data)
            if isinstance(data, mmap):
                self._left.append(data)
        while sum(map(len, self._left)) > _MAX_POOLED:
            del self._left[0]

    def clear(self) -> None:
        """Free the copies that have no holder."""
        with self._lock:
            self._idle.clear()
            self._idle_size = 0
            self._left, self._buffer_pool = [], BufferPool(_MAX_POOLED)


def owner_of(buffer: memoryview) -> tuple[Any, tuple[int, int, int]]:
    """Return the array that owns a buffer's memory, and a key: its id, and the buffer's address and size.

    None and zeros if the buffer is not an array's.
    """
    numpy = sys.modules.get("numpy")
    owner: Any = buffer.obj
    if numpy is None or not isinstance(owner, numpy.ndarray):
        return None, (0, 0, 0)
    address: int = owner.__array_interface__["data"][0]
    while isinstance(owner.base, numpy.ndarray):
        owner = owner.base
    return owner, (id(owner), address, len(buffer))

"""Copies of the large buffers of tasks, one for each content, by its digest; and which arrays were read already."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from mmap import mmap
from typing import Any, NamedTuple

import xxhash

from skyward.core.payload.shared_file import SharedFile
from skyward.core.protocol.buffers import PAGED, BufferPool
from skyward.core.system import open_files

__all__ = ["ArrayCache", "Snapshot", "Snapshots", "digest"]

Snapshot = mmap | bytes | SharedFile
"""A copy of a buffer."""

_MOST_FILES = 200  # that are open at a time, of those in use and of the others; a process often may have 1024 only
_OTHERS = 16  # files that are left to others where a process may have few
_MOST_PLACES = 1024
_SHARE = 0.25  # of the memory may be taken by copies that nobody holds; as nodes' stores may
_MOST_HELD = 128 << 20  # bytes of a call's copies that are held while no task needs them, besides the newest
_MAX_POOLED = 64 << 20  # bytes of memory that is kept for other copies, and of that which may soon be
_SAMPLES, _SAMPLE = 64, 4096  # parts of an array that are looked at where all of it would take long, bytes of each
_SPEED = 10e9  # bytes a second that are read so, until it is known
_PIECE = 8 << 20  # bytes of it that are read between two looks at how long tasks take
_WORTH = 1 / 20  # of the time that a task takes, to see whether an array of it has changed
_BUSY = 1 / 2  # of the time of the thread that submits may be spent so while all slots are busy


def digest(buffer: memoryview) -> bytes:
    """The name of a buffer's content: its length and xxh3-128.

    Not a cryptographic hash, and need not be one: both ends belong to the same user, who gains nothing by a collision
    of his own making; by chance two of 2**32 buffers are alike with a probability of 2**-65.
    """
    return _name(len(buffer), xxhash.xxh3_128_digest(buffer))


def _name(size: int, content: bytes) -> bytes:
    return size.to_bytes(8, "big") + content


def _fill(copy: mmap, buffer: memoryview) -> None:
    """Copy bytes; by numpy where it is loaded, since that lets other threads send meanwhile."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        copy[:] = buffer
    else:
        numpy.copyto(numpy.frombuffer(copy, numpy.uint8), numpy.frombuffer(buffer, numpy.uint8))


def _references(copies: list[Any], index: int) -> int:
    """How often an element is referred to, from here too; a view of memory refers to it, and so does a part of one."""
    return sys.getrefcount(copies[index])


_UNUSED = _references([object()], 0)


class Snapshots:
    """Copies of large buffers as they were when a task was submitted, one for each content.

    The user may change an array as soon as `submit` has returned, while its bytes leave later, to one node after
    another. Without a copy a node would get other bytes than the digest says, and every later task of that digest as
    well. Any thread may call.

    Parameters
    ----------
    shared
        Copies are files in memory, which nodes on this machine map instead of getting the bytes. They stay for later
        calls, for the nodes keep the same memory in their stores.
    """

    def __init__(self, shared: bool = False) -> None:
        self._shared = shared
        self._lock = threading.Lock()  # guards what follows, down to _spares
        self._kept: dict[bytes, tuple[Snapshot, int]] = {}  # digest -> the bytes, and how many hold them
        self._idle: OrderedDict[bytes, Snapshot] = OrderedDict()  # those that nobody holds; the longest idle first
        self._idle_size = 0
        self._budget = _SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if shared else 0
        self._left: list[mmap] = []  # copies that nobody holds, but parts of them may still be on their way to a node
        self._buffer_pool = BufferPool(_MAX_POOLED)
        self._places: set[tuple[int, int, int]] = set()  # where arrays were that are copied
        self._dropped: deque[bytes] = deque()  # by the garbage collector, which must not wait for the lock

    def __repr__(self) -> str:
        return f"<Snapshots {len(self._kept)}, {sum(len(data) for data, _ in self._kept.values()):,} bytes>"

    def take(self, buffer: memoryview, arrays: ArrayCache | None = None) -> tuple[bytes, Snapshot]:
        """Digest and copy of a buffer, for one task; the same copy for all tasks with equal bytes.

        With `arrays`, one that was seen there is read again only where that is worth it.
        """
        name = arrays.find(buffer) if arrays is not None else None
        data = self._hold(name, None) if name is not None else None
        known = data is not None
        if name is None or data is None:
            if name is None and (arrays is None or _owner(buffer)[1] in self._places):  # there probably is a copy
                name = digest(buffer)
                data = self._hold(name, None)
            if name is None or data is None:
                name, copy = self._copy(buffer)
                data = self._hold(name, copy)
                assert data is not None
                if len(self._places) >= _MOST_PLACES:
                    self._places.clear()
                self._places.add(_owner(buffer)[1])
        if arrays is not None and not (known and arrays.knows(buffer)):
            self._hold(name, None)
            if not arrays.note(buffer, name):
                self.release([name])
        return name, data

    def _copy(self, buffer: memoryview) -> tuple[bytes, Snapshot]:
        """A copy, and its digest, which is that of the copy: another thread may write meanwhile."""
        if self._shared and self._may_open():
            with contextlib.suppress(OSError):
                content = xxhash.xxh3_128()
                file = SharedFile(buffer, content.update)
                return _name(len(buffer), content.digest()), file
        copy: mmap | bytes
        if len(buffer) < PAGED:
            copy = bytes(buffer)
        else:
            with self._lock:
                copy = self._room(len(buffer))
            _fill(copy, buffer)
        return digest(memoryview(copy)), copy

    def _may_open(self) -> bool:
        """Whether a copy may be a file: where a process may have few, others need them more."""
        limit = open_files.limit()
        few = len(self._kept) < min(_MOST_FILES, limit // 5) and len(SharedFile.open) < 2 * limit // 5
        return few and (limit > 4 * _MOST_FILES or open_files.left() > _OTHERS)

    def _room(self, size: int) -> mmap:
        """Memory for a copy, best that of a former one at which nobody looks any more."""
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
        """A task has settled."""
        with self._lock:
            self._purge()
            for name in names:
                self._let_go(name)

    def drop(self, names: Iterable[bytes]) -> None:
        """As `release`, at once or a little later; may be called from anywhere."""
        self._dropped.extend(names)
        if self._lock.acquire(blocking=False):
            try:
                self._purge()
            finally:
                self._lock.release()

    def _purge(self) -> None:
        while self._dropped:
            self._let_go(self._dropped.popleft())

    def _let_go(self, name: bytes) -> None:
        data, holders = self._kept.pop(name)
        if holders > 1:
            self._kept[name] = data, holders - 1
            return
        self._idle[name] = data
        self._idle_size += len(data)
        most = min(_MOST_FILES, open_files.limit() // 5)
        while self._idle and (self._idle_size > self._budget or len(self._idle) > most):
            data = self._idle.popitem(last=False)[1]
            self._idle_size -= len(data)
            if isinstance(data, mmap):
                self._left.append(data)
        while sum(map(len, self._left)) > _MAX_POOLED:
            del self._left[0]

    def clear(self) -> None:
        """Let go of what nobody holds."""
        with self._lock:
            self._idle.clear()
            self._idle_size = 0
            self._left, self._buffer_pool = [], BufferPool(_MAX_POOLED)


class _Seen(NamedTuple):
    owner: weakref.ref[Any]
    sample: bytes
    name: bytes


class ArrayCache:
    """The arrays of one call that were hashed, so that short tasks which all have the same one need not wait for that.

    Whether an array has changed since the last task is seen exactly, by hashing it again, unless that would take more
    than a twentieth of the time that tasks take, or keep the thread that submits them too busy to feed all slots. Until
    the first task is done nobody knows how long they take, and all is read.

    Where it is not worth that, an array counts as the same while it is the same object, at the same place, and samples
    of its content have not changed: a buffer that is filled anew between two tasks is noticed, a change of some single
    elements is not. (joblib under loky looks at the object only.)

    Dead arrays are forgotten, as another may be made in their place.

    Parameters
    ----------
    snapshots
        Whose copies are held: the newest ones, for as long as this object and the array live, since the next task may
        need them again. All of them would be the arrays of the call once more.
    slots
        How many tasks run at a time.
    """

    def __init__(self, snapshots: Snapshots, slots: Callable[[], int] = lambda: 1) -> None:
        self._snapshots = snapshots
        self._slots = slots
        self._ran: tuple[float, int] = 0.0, 0  # seconds of how many tasks
        self._costs: dict[int, float] = {}  # size -> the least seconds that it took to read so much
        self._seen: dict[tuple[int, int, int], _Seen] = {}
        self._held: dict[tuple[int, int, int], bytes] = {}  # names of copies, the oldest first

    def __repr__(self) -> str:
        return f"<ArrayCache {len(self._seen)}, {len(self._held)} held>"

    def __del__(self) -> None:
        self._snapshots.drop(self._held.values())

    def ran(self, seconds: float) -> None:
        """A task that had arrays ran for so long. One thread may call, besides those that submit."""
        total, count = self._ran
        self._ran = total + seconds, count + 1

    def find(self, buffer: memoryview) -> bytes | None:
        """The digest of a buffer that was noted, or has changed since; None where it must be read (again)."""
        owner, key = _owner(buffer)
        seen = self._seen.get(key)
        if seen is None or seen.owner() is not owner:
            return None
        name = self._read(buffer)
        if name is None:
            return seen.name if seen.sample == _sample(buffer) else None
        if name != seen.name:
            self._forget(key)
        return name

    def knows(self, buffer: memoryview) -> bool:
        """Whether a buffer is noted."""
        return _owner(buffer)[1] in self._seen

    def _read(self, buffer: memoryview) -> bytes | None:
        """The digest, or None as soon as that is not worth its time."""
        content, size = xxhash.xxh3_128(), len(buffer)
        began = time.thread_time()
        for start in range(0, size, _PIECE):
            if not self._is_worth_reading(size):
                return None
            content.update(buffer[start : start + _PIECE])
        taken = time.thread_time() - began
        self._costs[size] = min(taken, self._costs.get(size, taken))
        return _name(size, content.digest())

    def _is_worth_reading(self, size: int) -> bool:
        seconds, count = self._ran
        if not count:
            return True
        return self._costs.get(size, size / _SPEED) <= seconds / count * min(_WORTH, _BUSY / max(self._slots(), 1))

    def note(self, buffer: memoryview, name: bytes) -> bool:
        """Remember the digest of a buffer if it is an array's, and be one more that holds its copy; whether it is."""
        owner, key = _owner(buffer)
        if owner is None:
            return False
        self._forget(key)
        this = weakref.ref(self)
        self._seen[key] = _Seen(weakref.ref(owner, lambda _: _forget(this, key)), _sample(buffer), name)
        self._held[key] = name
        held = list(self._held)  # a copy, since an array that the garbage collector finds meanwhile is forgotten
        size = sum(length for *_, length in held)
        for oldest in held[:-1]:
            if size <= _MOST_HELD:
                break
            size -= oldest[2]
            self._let_go(oldest)
        return True

    def _forget(self, key: tuple[int, int, int]) -> None:
        self._seen.pop(key, None)
        self._let_go(key)

    def _let_go(self, key: tuple[int, int, int]) -> None:
        name = self._held.pop(key, None)
        if name is not None:
            self._snapshots.drop([name])


def _forget(arrays: weakref.ref[ArrayCache], key: tuple[int, int, int]) -> None:
    if (these := arrays()) is not None:
        these._forget(key)  # noqa: SLF001 - a method of theirs would keep them alive


def _owner(buffer: memoryview) -> tuple[Any, tuple[int, int, int]]:
    """The array that holds a buffer's memory, and what tells the buffer from others; None if it is no array's."""
    numpy = sys.modules.get("numpy")
    owner: Any = buffer.obj
    if numpy is None or not isinstance(owner, numpy.ndarray):
        return None, (0, 0, 0)
    address: int = owner.__array_interface__["data"][0]
    while isinstance(owner.base, numpy.ndarray):
        owner = owner.base
    return owner, (id(owner), address, len(buffer))


def _sample(buffer: memoryview) -> bytes:
    """The digest of parts of it, first and last included."""
    samples = xxhash.xxh3_128()
    step = max(1, (len(buffer) - _SAMPLE) // (_SAMPLES - 1))
    for start in range(0, len(buffer), step):
        samples.update(buffer[start : start + _SAMPLE])
    return samples.digest()

"""Large buffers by the digest of their content: which node has which, so that each is sent to a node once.

Pure bookkeeping; the bytes live with the tasks that use them (`Snapshots`), and in the nodes' stores (`Blobs`). A
node's store may hold `budget` bytes of blobs that no task needs any more; beyond that, the ones that were used longest
ago are forgotten.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import xxhash

__all__ = ["Blobs", "Snapshots", "digest"]


def digest(buffer: memoryview) -> bytes:
    """The name of a buffer's content: its length and xxh3-128.

    Not a cryptographic hash, and need not be one: both ends belong to the same user, who gains nothing by a collision
    of his own making; by chance two of 2**32 buffers are alike with a probability of 2**-65.
    """
    return len(buffer).to_bytes(8, "big") + xxhash.xxh3_128_digest(buffer)


class Snapshots:
    """Copies of large buffers as they were when a task was submitted, one for each content.

    The user may change an array as soon as `submit` has returned, while its bytes leave later, to one node after
    another. Without a copy a node would get other bytes than the digest says, and every later task of that digest as
    well. Any thread may call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _kept
        self._kept: dict[bytes, tuple[bytes, int]] = {}  # digest -> the bytes, and how many tasks hold them

    def __repr__(self) -> str:
        return f"<Snapshots {len(self._kept)}, {sum(len(data) for data, _ in self._kept.values()):,} bytes>"

    def take(self, buffer: memoryview) -> tuple[bytes, bytes]:
        """Digest and copy of a buffer, for one task; the same copy for all tasks with equal bytes."""
        name = digest(buffer)
        data = self._hold(name, None)
        if data is None:
            copy = bytes(buffer)
            name = digest(memoryview(copy))  # of the copy: another thread may have written meanwhile
            data = self._hold(name, copy)
            assert data is not None
        return name, data

    def _hold(self, name: bytes, copy: bytes | None) -> bytes | None:
        with self._lock:
            data, holders = self._kept.get(name, (copy, 0))
            if data is not None:
                self._kept[name] = data, holders + 1
            return data

    def release(self, names: Iterable[bytes]) -> None:
        """A task has settled."""
        with self._lock:
            for name in names:
                data, holders = self._kept.pop(name)
                if holders > 1:
                    self._kept[name] = data, holders - 1


class Blobs:
    """What one node's store holds."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._users: dict[bytes, int] = {}
        self._total = 0

    def __repr__(self) -> str:
        return f"<Blobs {len(self._sizes)} kept, {self._total:,} of {self._budget:,} bytes, {len(self._users)} in use>"

    def use(self, sizes: Mapping[bytes, int]) -> tuple[list[bytes], list[bytes]]:
        """A task that needs these blobs goes to the node: which to send first, and which to forget for them."""
        missing = []
        for name, size in sizes.items():
            self._users[name] = self._users.get(name, 0) + 1
            if name not in self._sizes:
                missing.append(name)
                self._sizes[name] = size
                self._total += size
            self._sizes.move_to_end(name)
        return missing, self._evict() if missing else []

    def release(self, names: Iterable[bytes]) -> None:
        """The task is over on that node; its blobs stay until room is needed."""
        for name in names:
            left = self._users[name] - 1
            if left:
                self._users[name] = left
            else:
                del self._users[name]

    def _evict(self) -> list[bytes]:
        forgotten = []
        for name in [name for name in self._sizes if name not in self._users]:
            if self._total <= self._budget:
                break
            self._total -= self._sizes.pop(name)
            forgotten.append(name)
        return forgotten

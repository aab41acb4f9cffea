"""Which blobs a node holds, so that each is sent there once. Pure; the bytes are in the nodes' stores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

__all__ = ["NodeHoldings"]


class NodeHoldings:
    """The contents of one node's store.

    Parameters
    ----------
    budget
        Maximum bytes of all blobs in the store. Beyond that, blobs that no task needs are evicted, least recently
        used first.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._users: dict[bytes, int] = {}
        self._total = 0

    def __repr__(self) -> str:
        kept, used = len(self._sizes), len(self._users)
        return f"<NodeHoldings {kept} kept, {self._total:,} of {self._budget:,} bytes, {used} in use>"

    def use(self, sizes: Mapping[bytes, int]) -> tuple[list[bytes], list[bytes]]:
        """Record that a task needs these blobs; return which ones to send first, and which ones to evict for them.

        A blob that takes no memory there has the size 0.
        """
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
        """Record that a task no longer needs these blobs; they stay until room is needed."""
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
            if not self._sizes[name]:
                continue  # it is on the node's disk
            self._total -= self._sizes.pop(name)
            forgotten.append(name)
        return forgotten

"""PURE. Which node holds which blob, so that each is sent to a node once; the bytes are in the nodes' stores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

__all__ = ["NodeHoldings"]


class NodeHoldings:
    """What one node's store holds.

    Parameters
    ----------
    budget
        Bytes of blobs that no task needs any more which the store may keep; beyond it, those used longest ago are
        forgotten.
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

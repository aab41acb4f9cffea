"""Memory for large buffers: pages of their own, and a pool that reuses them."""

from __future__ import annotations

import contextlib
import mmap

__all__ = ["PAGED", "BufferPool", "pages"]

PAGED = 1 << 20
"""Size in bytes from which a buffer gets pages of its own."""

_HUGE = 2 << 20  # the size of a huge page, on x86-64 and mostly on Arm
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # not shared with the children of a task that forks


def pages(size: int) -> mmap.mmap:
    """Allocate zeroed, page-aligned memory, which the kernel commits only as it is written.

    Uses huge pages where the system allows them: getting 8 MB in small pages takes twice as long as filling them.
    """
    memory = mmap.mmap(-1, size, flags=_PRIVATE)
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class BufferPool:
    """Freed buffers kept for reuse, so that the kernel need not make and zero new ones.

    Parameters
    ----------
    capacity
        Maximum number of bytes kept.
    """

    def __init__(self, capacity: int = 16 << 20) -> None:
        self._capacity = capacity
        self._free: list[mmap.mmap] = []
        self._size = 0

    def __repr__(self) -> str:
        return f"<BufferPool {len(self._free)}, {self._size:,} bytes>"

    def take(self, size: int) -> mmap.mmap:
        """Return memory of this size, with arbitrary contents."""
        for index, memory in enumerate(self._free):
            if len(memory) == size:
                self._size -= size
                return self._free.pop(index)
        return pages(size)

    def give(self, memory: mmap.mmap) -> None:
        """Take back memory that is no longer used."""
        if self._size + len(memory) <= self._capacity:
            self._free.append(memory)
            self._size += len(memory)

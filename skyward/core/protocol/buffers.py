"""Memory for large buffers."""

from __future__ import annotations

import contextlib
import mmap

__all__ = ["PAGED", "BufferPool", "pages"]

PAGED = 1 << 20
"""Bytes from which a buffer gets pages of its own."""

_HUGE = 2 << 20  # the size of a huge page, on x86-64 and mostly on Arm
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # a task that forks must not share it with its children


def pages(size: int) -> mmap.mmap:
    """Zeroed memory that begins at a page; it is taken only as it is written.

    In huge pages where the system allows: to be given 8 MB in small ones takes twice as long as to fill them.
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
    most
        Bytes that are kept.
    """

    def __init__(self, most: int = 16 << 20) -> None:
        self._most = most
        self._free: list[mmap.mmap] = []
        self._size = 0

    def __repr__(self) -> str:
        return f"<BufferPool {len(self._free)}, {self._size:,} bytes>"

    def take(self, size: int) -> mmap.mmap:
        """Memory of this size, with whatever it held."""
        for index, memory in enumerate(self._free):
            if len(memory) == size:
                self._size -= size
                return self._free.pop(index)
        return pages(size)

    def give(self, memory: mmap.mmap) -> None:
        """Nobody will look at this any more."""
        if self._size + len(memory) <= self._most:
            self._free.append(memory)
            self._size += len(memory)

"""Memory that a slot keeps between tasks: reference cycles are collected early, and leaks end the slot.

Python collects cycles after a number of new objects, whatever their size; ten tasks that each leave a cycle with an
array of 30 MB make too few. So memory is checked between tasks, where nobody waits for it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from pathlib import Path

__all__ = ["Growth"]

_PAUSE = 0.05  # seconds between two checks, each of which takes some 10 microseconds
_COLLECT = 100 << 20  # bytes of growth, garbage or not, after which cycles are collected
_SHARE = 0.25  # of what the last collection left, if that is more: with millions of objects each collection is slow
_KEPT = 300 << 20  # bytes that a slot may keep in addition to its first task's; loky allows its workers as much


class Growth:
    """Watches the memory of this process from its first task onward."""

    def __init__(self) -> None:
        self._next = 0.0
        self._first: int | None = None  # bytes after the first task
        self._left = 0  # bytes after the last collection

    def __repr__(self) -> str:
        return f"<Growth from {self._first} to {self._left} bytes>"

    def exceeded(self) -> bool:
        """Collect garbage if there may be much of it; returns whether more than `_KEPT` remains.

        To be called when a task has been answered and none of its objects are needed any longer.
        """
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _PAUSE
        held = _held()
        if self._first is None:
            self._first = self._left = held
            return False
        self._left = min(self._left, held)
        if held < self._left + max(_COLLECT, _SHARE * self._left):
            return False
        gc.collect()
        _trim()
        self._left = _held()
        return self._left > self._first + _KEPT


def _held() -> int:
    """Bytes of this process's own memory; shared files, such as large arguments, do not count."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_bytes().split()
    except OSError:  # not Linux: unknown
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _trim() -> None:
    """Let the C library return freed memory to the kernel, so that it does not count as a leak."""
    import ctypes  # noqa: PLC0415 - the fork server has loaded it where it exists

    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)

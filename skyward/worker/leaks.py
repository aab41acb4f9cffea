"""What a slot keeps from task to task: reference cycles are collected before they amount to much, leaks end the slot.

Python looks for cycles when enough objects were made, whatever they hold; ten tasks that each leave one to an array of
30 MB make too few. So memory is looked at between tasks, where that takes nobody's time who could notice.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from pathlib import Path

__all__ = ["Growth"]

_PAUSE = 0.05  # seconds between two looks, which take some 10 microseconds each
_COLLECT = 100 << 20  # bytes that may come to be kept, garbage or not, until cycles are looked for
_SHARE = 0.25  # of what was left the last time, which may be more: else looking at millions of objects would never end
_KEPT = 300 << 20  # bytes that a slot may keep more than after its first task; loky's workers may keep as much


class Growth:
    """Watches the memory of this process from its first task on."""

    def __init__(self) -> None:
        self._next = 0.0
        self._first: int | None = None  # bytes after the first task
        self._left = 0  # bytes after the last collection

    def __repr__(self) -> str:
        return f"<Growth from {self._first} to {self._left} bytes>"

    def exceeded(self) -> bool:
        """Collect what has become garbage, if it may be much; whether what remains is more than tasks should leave.

        To be asked when a task has been answered and nothing of it is needed any more.
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
    """Bytes of memory that are this process's own; shared files, as large arguments are, do not count."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_bytes().split()
    except OSError:  # no Linux: there is nothing to be seen
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _trim() -> None:
    """Let the C library give back what it keeps of freed memory, which is nobody's leak."""
    import ctypes  # noqa: PLC0415 - the fork server has loaded it where it can be

    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)

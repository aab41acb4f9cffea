"""`sky.current_worker`: which worker a task runs on. Reads only what slots set in the environment."""

from __future__ import annotations

import contextlib
import heapq
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["DEPTH", "KEPT", "NODE", "SLOT", "CurrentWorker", "Seats", "current_worker"]

NODE, SLOT = "SKYWARD_NODE", "SKYWARD_SLOT"
"""Environment variables of a worker's processes and of their children."""

DEPTH = "SKYWARD_DEPTH"
"""Another one: 1 in a task of a program's pool, 2 in a task of a pool opened by such a task."""

KEPT = "SKYWARD_KEPT"
"""Another one: a folder in which tasks may keep files for other tasks of their node, until the node ends."""

_thread = threading.local()


class CurrentWorker(NamedTuple):
    """A worker, identified by its node's name and its number on that node.

    Attributes
    ----------
    node
        Name of the node, unique over the pool's lifetime.
    slot
        From 1 to the pool's concurrency, unique among the tasks that run on a node at the same time. 0 in a thread
        started by a task with ``executor="thread"``.
    """

    node: str
    slot: int

    def __str__(self) -> str:
        return f"{self.node}/slot-{self.slot}"


def current_worker() -> CurrentWorker | None:
    """Return the worker that runs this task; None outside of tasks.

    Returns
    -------
    CurrentWorker or None
        Use its ``node`` and ``slot`` to pick a port or a folder; `Worker` can give slots GPUs. Processes that a task
        starts get the same answer.

    Examples
    --------
    >>> import skyward as sky
    >>> sky.current_worker() is None  # in your program
    True
    """
    node = os.environ.get(NODE)
    if node is None:
        return None
    slot = getattr(_thread, "slot", None)
    return CurrentWorker(node, int(os.environ.get(SLOT, "0")) if slot is None else slot)


class Seats:
    """Numbers from 1 up, the lowest free one first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._free: list[int] = []
        self._count = 0

    def __repr__(self) -> str:
        return f"<Seats {self._count - len(self._free)} of {self._count} taken>"

    def take(self) -> int:
        """Take a number, which is the caller's alone until it is released."""
        with self._lock:
            if self._free:
                return heapq.heappop(self._free)
            self._count += 1
            return self._count

    def release(self, seat: int) -> None:
        """Make a number available again."""
        with self._lock:
            heapq.heappush(self._free, seat)

    @contextlib.contextmanager
    def taken(self) -> Iterator[int]:
        """Hold a seat in this thread, as its `current_worker`."""
        _thread.slot = seat = self.take()
        try:
            yield seat
        finally:
            self.release(seat)
            _thread.slot = None

"""Which worker a task runs in: `current_worker`, public as `sky.current_worker`. Knows only what slots leave for it."""

from __future__ import annotations

import contextlib
import heapq
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["DEPTH", "NODE", "SLOT", "CurrentWorker", "Seats", "current_worker"]

NODE, SLOT = "SKYWARD_NODE", "SKYWARD_SLOT"
"""Environment variables of a worker's processes, and of what they start."""

DEPTH = "SKYWARD_DEPTH"
"""Another: 1 in a task of a program's pool, 2 in a task of a pool that such a task has opened."""

_thread = threading.local()


class CurrentWorker(NamedTuple):
    """A worker, by its node's name and its number on that node.

    Attributes
    ----------
    node
        Name of the node. No two nodes that a pool ever has share one.
    slot
        From 1 to the pool's concurrency; no two tasks that run on a node at the same time share one. 0 in a thread that
        a task of ``executor="thread"`` has started itself.
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
        Its ``node`` and ``slot`` can choose a GPU, a port or a folder. What a task starts gets the same answer.

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
    """Numbers from 1 on, the lowest that is free first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._free: list[int] = []
        self._most = 0

    def __repr__(self) -> str:
        return f"<Seats {self._most - len(self._free)} of {self._most} taken>"

    def take(self) -> int:
        """A number that nobody else has until it is given back."""
        with self._lock:
            if self._free:
                return heapq.heappop(self._free)
            self._most += 1
            return self._most

    def give_back(self, seat: int) -> None:
        """Let others have it."""
        with self._lock:
            heapq.heappush(self._free, seat)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """A seat for what this thread does meanwhile."""
        _thread.slot = self.take()
        try:
            yield
        finally:
            self.give_back(_thread.slot)
            _thread.slot = None

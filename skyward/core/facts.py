"""A pool's `Tally`, kept up to date by its events, which any thread may read at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TypeVar

from skyward.core.events import (
    Event,
    MachineEnded,
    MachineMade,
    Machines,
    NodeBegun,
    NodeGone,
    NodeLoad,
    NodeReady,
    NodeStep,
    PoolClosed,
    PoolDraining,
    PoolStarted,
    TaskEnded,
    TasksQueued,
    Transferred,
)
from skyward.core.status import PoolStatus, RunningTask
from skyward.core.tally import Tally

__all__ = ["Facts"]

_T = TypeVar("_T")


def _no_nodes() -> Mapping[str, int]:
    return {}


class Facts:
    """The `Tally` of one pool, fed by its events. Thread-safe.

    Parameters
    ----------
    at_nodes
        Returns how many tasks or batches each node has. Called from any thread; must not block.
    running
        Returns the tasks that have run for a moment, the longest first. As `at_nodes`.
    """

    kinds = (
        TaskEnded,
        TasksQueued,
        NodeBegun,
        NodeStep,
        NodeReady,
        NodeLoad,
        NodeGone,
        Transferred,
        MachineMade,
        MachineEnded,
        Machines,
        PoolStarted,
        PoolDraining,
        PoolClosed,
    )
    """The events that it counts."""

    def __init__(
        self,
        at_nodes: Callable[[], Mapping[str, int]] = _no_nodes,
        running: Callable[[], Sequence[RunningTask]] = tuple,
    ) -> None:
        self.at_nodes = at_nodes
        self.running = running
        # Guards `_tally`, which is changed from several threads. Reentrant: a signal handler may ask for the status
        # while an event is counted in the same thread.
        self._lock = threading.RLock()
        self._tally = Tally()
        self._count = {kind: partial(count, self._tally) for kind, count in Tally.HANDLERS.items()}

    def __repr__(self) -> str:
        return f"<Facts of {self._tally.pool}>"

    def handle(self, event: Event) -> None:
        """Count an event of one of `kinds`."""
        with self._lock:
            self._count[type(event)](event, monotonic())

    def status(self) -> PoolStatus:
        """Return the pool's state now."""
        return self.read(lambda tally, now: tally.status(now, self.at_nodes(), self.running()))

    def read(self, what: Callable[[Tally, float], _T]) -> _T:
        """Call a function with the tally and the time, and return its result. Events wait meanwhile, so be quick."""
        with self._lock:
            return what(self._tally, monotonic())

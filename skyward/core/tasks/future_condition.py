"""The condition of a future, in one object instead of eight.

A future has one for its whole life, though hardly anybody ever waits for a single one of thousands. Python's garbage
collector goes through all that is alive again and again; with thousands of tasks out this was a fifth of what a task
costs. No general condition: it has what `concurrent.futures` asks of one.
"""

from __future__ import annotations

import threading
from _thread import RLock

__all__ = ["FutureCondition"]


class FutureCondition(RLock):  # type: ignore[misc,unused-ignore]  # it is no final class, whatever the stubs say
    """Wakes all who wait. It is a lock, which guards what its owner tells by it.

    The thread that has it may take it again, as a finalizer or a signal may meet a future that its own thread is at,
    but not to `wait` then.
    """

    __slots__ = ("_sleepers",)

    def __init__(self) -> None:
        self._sleepers: list[threading.Lock] | None = None  # of each one who waits a lock that is held

    def wait(self, timeout: float | None = None) -> bool:
        """Let go of the lock until the bell rings, or for so many seconds; whether it rang."""
        sleeper = threading.Lock()
        sleeper.acquire()
        if self._sleepers is None:
            self._sleepers = []
        self._sleepers.append(sleeper)
        self.release()
        try:
            return sleeper.acquire(timeout=-1 if timeout is None else max(timeout, 0.0))
        finally:
            self.acquire()

    def notify_all(self) -> None:
        """Ring it; the lock must be held."""
        if self._sleepers is not None:
            for sleeper in self._sleepers:
                sleeper.release()
            self._sleepers = None

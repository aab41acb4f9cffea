"""The condition of a future, in two objects instead of eight.

A future has one for its whole life, though hardly anybody ever waits for a single one of thousands. Python's garbage
collector goes through all that is alive again and again; with thousands of tasks out this was a fifth of what a task
costs. No general condition: it has what `concurrent.futures` asks of one.
"""

from __future__ import annotations

import threading
from types import TracebackType

__all__ = ["Bell"]


class Bell:
    """Wakes all who wait. The lock may be taken again by the thread that has it, but not to `wait` then."""

    __slots__ = ("_lock", "_sleepers")

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards what the owner of the bell says, and _sleepers
        self._sleepers: list[threading.Lock] | None = None  # of each one who waits a lock that is held

    def __repr__(self) -> str:
        return f"<Bell with {len(self._sleepers or ())} asleep>"

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    def acquire(self) -> bool:
        """Take the lock."""
        return self._lock.acquire()

    def release(self) -> None:
        """Let go of the lock."""
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Let go of the lock until the bell rings, or for so many seconds; whether it rang."""
        sleeper = threading.Lock()
        sleeper.acquire()
        if self._sleepers is None:
            self._sleepers = []
        self._sleepers.append(sleeper)
        self._lock.release()
        try:
            return sleeper.acquire(timeout=-1 if timeout is None else max(timeout, 0.0))
        finally:
            self._lock.acquire()

    def notify_all(self) -> None:
        """Ring it; the lock must be held."""
        sleepers, self._sleepers = self._sleepers, None
        for sleeper in sleepers or ():
            sleeper.release()

"""The condition of a future, in one object instead of eight.

A future has one for its whole life, although hardly anybody waits for a single future among thousands. Python's garbage
collector traverses all live objects again and again, which was a fifth of the cost of a task with thousands of tasks
out. This is not a general condition: it has only what `concurrent.futures` needs.
"""

from __future__ import annotations

import threading
from _thread import RLock

from skyward.core.interrupts import INTERRUPT_SECONDS

__all__ = ["FutureCondition"]


class FutureCondition(RLock):  # type: ignore[misc,unused-ignore]  # it is not final, whatever the stubs say
    """A condition that wakes all waiters. It is itself the lock that guards the state it announces.

    The lock is reentrant, since a finalizer or a signal handler may use a future that its own thread is using; but
    `wait` must not be called with the lock held twice.
    """

    __slots__ = ("_sleepers",)

    def __init__(self) -> None:
        self._sleepers: list[threading.Lock] | None = None  # for each waiter, a lock that is held

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock and wait for `notify_all`, up to `timeout` seconds; return whether it was called."""
        sleeper = threading.Lock()  # guards nothing: `notify_all` releases it
        sleeper.acquire()
        if self._sleepers is None:
            self._sleepers = []
        self._sleepers.append(sleeper)
        self.release()
        try:
            if timeout is not None:
                return sleeper.acquire(timeout=max(timeout, 0.0))
            while not sleeper.acquire(timeout=INTERRUPT_SECONDS):
                pass
            return True
        finally:
            self.acquire()

    def notify_all(self) -> None:
        """Wake all waiters; the lock must be held."""
        if self._sleepers is not None:
            for sleeper in self._sleepers:
                sleeper.release()
            self._sleepers = None

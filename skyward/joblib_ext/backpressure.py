"""Holds batches back while the caller is slow to take the results of a generator, so that memory stays bounded.

joblib sends a batch whenever one has ended, whether or not its results have been taken. If they are large and
``return_as`` is a generator, batches are held back while the results that are ready exceed `LIMIT` bytes.

This can't deadlock: batches go out in order, so when the caller waits for one that is held back, the results of all
batches before it have been taken, and none are ready.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["LIMIT", "Backlog"]

LIMIT = 64 << 20
"""Bytes of results that may be ready and not taken."""

_POLL = 0.01  # seconds between two checks of what was taken, which joblib does not report
_SMOOTH = 0.2  # weight of the newest result's size in the mean


class Backlog:
    """The batches that one call holds back.

    Parameters
    ----------
    untaken
        Returns the number of batches, held ones included, whose results have not been taken; None to hold nothing back.
    slots
        Returns how many tasks run at once; that many batches may always be out.
    is_open
        Returns whether batches can still be sent. Once they can't, held batches are sent anyway, and fail.
    """

    def __init__(
        self,
        untaken: Callable[[], int] | None,
        slots: Callable[[], int],
        is_open: Callable[[], bool] = lambda: True,
    ) -> None:
        self._untaken = untaken
        self._slots = slots
        self._is_open = is_open
        self._lock = threading.Lock()  # guards _held, _runs and _closed
        self._held: deque[Callable[[], object]] = deque()
        self._runs = False
        self._closed = False
        self._mean = 0.0  # smoothed bytes of a batch's results

    def __repr__(self) -> str:
        return f"<Backlog {len(self._held)} held, {self._mean:,.0f} bytes each>"

    def __len__(self) -> int:
        """Return the number of batches held."""
        return len(self._held)

    @property
    def is_full(self) -> bool:
        """Whether the results that are ready, or will be soon, exceed the limit."""
        if self._untaken is None:
            return False
        return self._mean * (self._untaken() - len(self._held) - self._slots()) > LIMIT

    def ended(self, size: int) -> None:
        """Record the size in bytes of the results of a batch that has ended."""
        self._mean = self._mean + _SMOOTH * (size - self._mean) if self._mean else float(size)

    def hold(self, send: Callable[[], object]) -> bool:
        """Hold a batch until there is room, if there is none or others wait; return whether it is held."""
        if self._untaken is None:
            return False
        with self._lock:
            if self._closed or not (self._held or self.is_full):
                return False
            self._held.append(send)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._watch, name="skyward-joblib-backlog", daemon=True).start()
            return True

    def close(self) -> None:
        """Drop the batches held."""
        with self._lock:
            self._closed = True
            self._held.clear()

    def _watch(self) -> None:
        """Send held batches as the caller takes results."""
        while True:
            with self._lock:
                if not self._held:
                    self._runs = False
                    return
                send = None if self.is_full and self._is_open() else self._held.popleft()
            if send is None:
                time.sleep(_POLL)
            else:
                send()

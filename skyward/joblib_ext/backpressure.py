"""Batches that wait because the caller is slow to take the results of a generator: memory stays bounded.

joblib sends a batch whenever one has ended, whether or not anybody has taken its results. Where they are large and
``return_as`` is a generator, this holds batches back while what lies ready is more than `LIMIT` bytes.

Nobody can wait for ever: batches go out in order, so when the caller waits for one that is held back, all those before
it were taken and nothing lies ready.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["LIMIT", "Backlog", "untaken"]

LIMIT = 64 << 20
"""Bytes of results that may lie ready."""

_LOOK = 0.01  # seconds between two looks at what was taken, of which joblib tells nobody
_SMOOTH = 0.2  # weight of the newest result's size in the mean


class Backlog:
    """What one call holds back.

    Parameters
    ----------
    untaken
        Says of how many batches, those held included, nobody has taken the results. None: nothing is held back.
    slots
        How many tasks run at a time; so many batches may always be out.
    is_open
        Whether batches can still be sent. When they can't, those that are held go out all the same, and fail.
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
        """How many it holds."""
        return len(self._held)

    @property
    def is_full(self) -> bool:
        """Whether so much lies ready, or soon will, that no batch should go out."""
        if self._untaken is None:
            return False
        return self._mean * (self._untaken() - len(self._held) - self._slots()) > LIMIT

    def ended(self, size: int) -> None:
        """A batch has ended, with results of so many bytes."""
        self._mean = self._mean + _SMOOTH * (size - self._mean) if self._mean else float(size)

    def hold(self, send: Callable[[], object]) -> bool:
        """Keep a batch until there is room, if there is none or others wait; whether it was kept."""
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
        """Forget what is held."""
        with self._lock:
            self._closed = True
            self._held.clear()

    def _watch(self) -> None:
        """Send what is held as the caller takes results."""
        while True:
            with self._lock:
                if not self._held:
                    self._runs = False
                    return
                send = None if self.is_full and self._is_open() else self._held.popleft()
            if send is None:
                time.sleep(_LOOK)
            else:
                send()


def untaken(parallel: Any, out: Callable[[], int]) -> Callable[[], int] | None:
    """How to count the batches of a generator call whose results nobody has taken; None for other calls.

    joblib has no public way to ask. Its ``_jobs`` are all of them, but for ``generator_unordered`` only those that have
    ended, beside which `out` counts the others.
    """
    if not getattr(parallel, "return_generator", False):
        return None
    if getattr(parallel, "return_ordered", True):
        return lambda: len(parallel._jobs)  # noqa: SLF001
    return lambda: len(parallel._jobs) + out()  # noqa: SLF001

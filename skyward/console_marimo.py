"""How a pool's work goes, in marimo, under the cell that opened the pool.

Import it only in a marimo notebook, since it needs marimo.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import marimo

from skyward.core.progress import progress_html
from skyward.core.status import PoolStatus

__all__ = ["MarimoCell"]

_PERIOD = 0.5  # seconds between two drawings


class MarimoCell:
    """The display of one pool, from `start` until `stop`.

    It stays under the cell that opened the pool: only a thread that a cell has started may draw, and only there. When a
    cell ends with a value, marimo shows that in its place.

    Parameters
    ----------
    status
        Tells how the pool is.
    """

    def __init__(self, status: Callable[[], PoolStatus]) -> None:
        self._status = status
        self._end = threading.Event()
        self._thread = marimo.Thread(target=self._run, name="skyward-cell", daemon=True)

    @classmethod
    def start(cls, status: Callable[[], PoolStatus]) -> MarimoCell | None:
        """Begin, under the cell that runs; returns None if this thread runs no cell of a notebook."""
        if not hasattr(marimo, "Thread") or not marimo.running_in_notebook():  # older ones have no Thread
            return None
        cell = cls(status)
        cell._thread.start()
        return cell

    def __repr__(self) -> str:
        return f"<MarimoCell {'ended' if self._end.is_set() else 'live'}>"

    def submitted(self) -> None:
        """Nothing: it doesn't move to other cells."""

    def stop(self) -> None:
        """Draw the end; may be repeated."""
        self._end.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        shown = ""
        while True:
            is_last = self._end.wait(_PERIOD)
            status = self._status()
            if self._thread.should_exit:  # the cell runs again, or is gone
                return
            text = progress_html(status, None)
            if text != shown and (status.tasks.unfinished or not shown or is_last):  # else its clock would go on
                marimo.output.replace(marimo.Html(text))
                shown = text
            if is_last:
                return

"""A pool's progress bar, under the notebook cell that submits the tasks.

Import it only in a notebook's kernel, since it needs IPython.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from IPython.core.display_functions import DisplayHandle
from IPython.core.getipython import get_ipython

from skyward.core.progress import progress_html, progress_text
from skyward.core.status import PoolStatus, TaskCounts

__all__ = ["Cell"]

_PERIOD = 0.5  # seconds between two drawings


class Cell:
    """The display of one pool, from `start` until `stop`.

    It starts under the cell that opens the pool. When another cell submits its first task, that display ends, and a new
    one starts under the other cell, for the tasks that have not ended by then. When a cell has run, its display is
    brought up to date, since programs that execute notebooks do not record later changes.

    Parameters
    ----------
    status
        Returns the pool's state.
    events
        The event registry of IPython's shell.
    """

    def __init__(self, status: Callable[[], PoolStatus], events: Any) -> None:
        self._status = status
        self._events = events
        # Guards what follows: the cell's thread moves the display while ours draws it. Held from asking how the pool is
        # until that is drawn, since what was asked earlier must not be drawn later, nor under the cell it left.
        self._lock = threading.RLock()
        self._handle: DisplayHandle | None = None
        self._before: PoolStatus | None = None
        self._cell: object = None
        self._shown = ""
        self._drawn: TaskCounts | None = None  # the tasks that are shown, once there are any
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="skyward-cell", daemon=True)

    @classmethod
    def start(cls, status: Callable[[], PoolStatus]) -> Cell | None:
        """Start under the running cell; returns None if this process is not a notebook's kernel."""
        shell = get_ipython()
        if shell is None or getattr(shell, "kernel", None) is None:  # a terminal's IPython has no cells
            return None
        cell = cls(status, shell.events)
        shell.events.register("post_run_cell", cell._has_run)
        cell._begin(cell._number())
        cell._thread.start()
        return cell

    def __repr__(self) -> str:
        return f"<Cell {self._cell}>"

    def submitted(self) -> None:
        """Move to the running cell, if it is a different one. Called for each task, in the thread that submits it."""
        if (number := self._number()) != self._cell and threading.current_thread() is threading.main_thread():
            self._begin(number)

    def stop(self) -> None:
        """Draw the final state; may be repeated."""
        if not self._end.is_set():
            self._events.unregister("post_run_cell", self._has_run)
        self._end.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._draw_now()

    def _has_run(self, _: object) -> None:
        self._draw_now()

    @staticmethod
    def _number() -> object:
        return getattr(get_ipython(), "execution_count", None)

    def _begin(self, number: object) -> None:
        with self._lock:
            status = self._status()
            ended = replace(status, tasks=replace(status.tasks, waiting=0, running=0))
            self._draw(ended)  # what the other cell keeps
            self._before, self._cell = ended, number
            self._drawn = None
            self._handle, self._shown = DisplayHandle(), ""  # type: ignore[no-untyped-call]
            self._draw(status)

    def _draw_now(self) -> None:
        with self._lock:
            self._draw(self._status())

    def _draw(self, status: PoolStatus) -> None:
        if self._handle is None or (status.tasks == self._drawn and not status.tasks.unfinished):
            return  # otherwise the time shown would keep running after the last task
        text = progress_text(status, self._before)
        if text == self._shown:
            return
        content: dict[str, Any] = {"text/plain": text, "text/html": progress_html(status, self._before)}
        (self._handle.update if self._shown else self._handle.display)(content, raw=True)  # type: ignore[no-untyped-call]
        self._shown = text
        self._drawn = status.tasks if status.tasks.total else None

    def _run(self) -> None:
        while not self._end.wait(_PERIOD):
            self._draw_now()

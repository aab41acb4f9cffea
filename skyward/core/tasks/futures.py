"""The future of a task: a `concurrent.futures.Future` whose task can be stopped while it runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from skyward.core.tables import html_table
from skyward.core.tasks.future_condition import FutureCondition
from skyward.core.visible import shown

__all__ = ["TaskFuture"]

_T = TypeVar("_T")


class TaskFuture(concurrent.futures.Future[_T]):
    """A `concurrent.futures.Future` that can be cancelled until it is done: a running task is stopped."""

    began = False
    """Whether a slot has begun the task, as far as its node has reported. Set by the task runner."""

    def __reduce__(self) -> Any:
        raise TypeError("a future belongs to the process that has the pool; give the task its result()")

    def __init__(self, on_cancel: Callable[[int], None], task: int) -> None:
        super().__init__()
        self._condition = FutureCondition()  # type: ignore[assignment]  # it has what a future needs of its condition
        self.seconds: float | None = None
        """How long the task ran, measured on its slot; set before callbacks are called."""
        self.size = 0
        """Bytes of the pickled call, with those of its out-of-band buffers that go along with it each time."""
        self.result_size = 0
        """Bytes of the pickled result; set before callbacks are called."""
        self.label = ""
        """Its function, by name."""
        self._on_cancel = on_cancel  # gets the task's number: a closure would be four more objects for each task
        self._task = task

    def __repr__(self) -> str:
        return shown(f"<TaskFuture of {': '.join(self._words())}>")

    def _repr_html_(self) -> str:
        """How notebooks show it."""
        label, *words = self._words()
        took = "" if self.seconds is None else f"{self.seconds:.3g} s"
        return html_table(("task", "state", "ran"), [[label, ": ".join(words), took]])

    def _words(self) -> list[str]:
        """Its function and its state."""
        if not self.done():
            return [self.label, "running" if self.running() else "waiting"]
        if self.cancelled():
            return [self.label, "cancelled"]
        if (error := self.exception()) is not None:
            return [self.label, f"failed: {type(error).__name__}", *str(error).splitlines()[:1]]
        return [self.label, f"done, {type(self.result()).__name__}"]

    def cancel(self) -> bool:
        """Cancel the task, and stop it if it is running. False if it is already done.

        Executors of the standard library can't stop a running call, and their futures return False then.
        """
        done = self.done()
        cancelled = True
        try:
            cancelled = super().cancel()
        finally:  # also if a callback has called sys.exit()
            if cancelled and not done:
                self._on_cancel(self._task)
        return cancelled

    def __await__(self) -> Generator[Any, None, _T]:
        """Wait in a coroutine; if that is cancelled, the task is, too."""
        return asyncio.wrap_future(self).__await__()

    def running(self) -> bool:
        """Whether the task is running, as far as its node has reported, which it does for tasks of 50 ms or more."""
        return super().running() or (self.began and not self.done())

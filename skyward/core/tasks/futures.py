"""The future of a task: a `concurrent.futures.Future` whose task can be stopped while it runs."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import TypeVar

from skyward.core.tasks.future_condition import FutureCondition

__all__ = ["TaskFuture"]

_T = TypeVar("_T")


class TaskFuture(concurrent.futures.Future[_T]):
    """A `concurrent.futures.Future` whose `cancel` works as long as it is not done: a running task is stopped."""

    began = False
    """Whether the task is known to run. Set by the dispatcher: a slot has begun it, as its node says a moment later."""

    def __init__(self, on_cancel: Callable[[int], None], task: int) -> None:
        super().__init__()
        self._condition = FutureCondition()  # type: ignore[assignment]  # it has what is asked of a future's condition
        self.seconds: float | None = None
        """How long the task ran, measured on its slot; set before callbacks are called."""
        self.size = 0
        """Bytes of the pickled call, with its out-of-band buffers."""
        self.result_size = 0
        """Bytes of the pickled result; set before callbacks are called."""
        self._on_cancel = on_cancel  # with the task's number: a closure would be four objects more for each task
        self._task = task

    def cancel(self) -> bool:
        """Give the task up: it is not started any more, or stopped where it runs. False if it is done already.

        An executor of the standard library can't stop a call that runs, and its futures return False then.
        """
        done = self.done()
        if not super().cancel():
            return False
        if not done:
            self._on_cancel(self._task)
        return True

    def running(self) -> bool:
        """Whether the task runs on a node, as far as is known here: one that ends within 50 ms may never be seen to."""
        return super().running() or (self.began and not self.done())

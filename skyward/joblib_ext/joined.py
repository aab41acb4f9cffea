"""A batch of joblib's whose calls are tasks of their own: its future."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Sequence
from typing import Any

from skyward.core.tasks.futures import TaskFuture

__all__ = ["JoinedFuture"]


class JoinedFuture(TaskFuture[list[Any]]):
    """The future of several tasks: done when all of them are, or when one has failed, which cancels the others.

    Parameters
    ----------
    parts
        Futures of the tasks, whose results are lists; together these are the result.
    """

    def __init__(self, parts: Sequence[TaskFuture[Any]]) -> None:
        super().__init__(self._cancel_parts, 0)
        self._parts = parts
        self._left = len(parts)
        self._lock = threading.Lock()  # guards _left, which is 0 once the outcome is known
        self.size = sum(part.size for part in parts)
        for part in parts:
            part.add_done_callback(self._part_done)

    @property
    def began(self) -> bool:  # type: ignore[override]  # those who set it have no future of this kind
        """Whether any task has begun, as far as its node has reported."""
        return any(part.began for part in self._parts)

    def _cancel_parts(self, _: int) -> None:
        for part in self._parts:
            part.cancel()

    def _part_done(self, part: concurrent.futures.Future[Any]) -> None:
        bad = part.cancelled() or part.exception() is not None
        with self._lock:
            if not self._left:
                return
            self._left = 0 if bad else self._left - 1
            if self._left:
                return
        if part.cancelled():
            concurrent.futures.Future.cancel(self)
        if not self.set_running_or_notify_cancel():
            self._cancel_parts(0)
            return
        self.seconds = sum(each.seconds or 0.0 for each in self._parts) or None
        self.result_size = sum(each.result_size for each in self._parts)
        if bad:
            self._cancel_parts(0)
            self.set_exception(part.exception())
        else:
            self.set_result([result for each in self._parts for result in each.result()])

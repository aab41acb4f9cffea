"""`submit` and `map` as `concurrent.futures` has them, with their types: a pool as an executor.

How a pool gets its nodes and ends is in `skyward.core.pool`.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar, overload

from skyward.core.errors import ConfigError
from skyward.core.function import CallRunner, Chunk, PendingCall, unwrapped
from skyward.core.spec import parse_count
from skyward.core.tasks.dispatch import Dispatcher
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import TaskOptions

__all__ = ["TaskExecutor"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")


class TaskExecutor(concurrent.futures.Executor, CallRunner):
    """An executor whose calls run on nodes. Its `shutdown` is left to the subclass."""

    @property
    @abstractmethod
    def dispatcher(self) -> Dispatcher:
        """Where calls are submitted. Raises `PoolNotActive`."""

    @overload
    def submit(self, fn: Callable[_P, PendingCall[_T]], /, *args: _P.args, **kwargs: _P.kwargs) -> TaskFuture[_T]: ...
    @overload
    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> TaskFuture[_T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Run ``fn(*args, **kwargs)`` on a node; see `concurrent.futures.Executor.submit`.

        Parameters
        ----------
        fn
            Any function that cloudpickle can carry, or one that `sky.compute` has made.
        args, kwargs
            Its arguments.

        Returns
        -------
        TaskFuture
            Its `cancel` also stops a call that runs, which executors of the standard library can't. Whatever goes wrong
            with the task is raised by its `result`.

        Raises
        ------
        PoolNotActive
            The pool is not open.
        """
        return self.dispatcher.call(unwrapped(fn), args, kwargs)

    @overload  # type: ignore[override]  # the base class takes any function with any iterables
    def map(
        self,
        fn: Callable[[_A], PendingCall[_T]],
        first: Iterable[_A],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[_T]: ...
    @overload
    def map(
        self, fn: Callable[[_A], _T], first: Iterable[_A], /, *, timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[_T]: ...
    @overload
    def map(
        self,
        fn: Callable[[_A, _B], PendingCall[_T]],
        first: Iterable[_A],
        second: Iterable[_B],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[_T]: ...
    @overload
    def map(
        self,
        fn: Callable[[_A, _B], _T],
        first: Iterable[_A],
        second: Iterable[_B],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[_T]: ...
    @overload
    def map(
        self,
        fn: Callable[[_A, _B, _C], PendingCall[_T]],
        first: Iterable[_A],
        second: Iterable[_B],
        third: Iterable[_C],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[_T]: ...
    @overload
    def map(
        self,
        fn: Callable[[_A, _B, _C], _T],
        first: Iterable[_A],
        second: Iterable[_B],
        third: Iterable[_C],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[_T]: ...
    @overload
    def map(
        self,
        fn: Callable[..., PendingCall[_T]],
        first: Iterable[Any],
        second: Iterable[Any],
        third: Iterable[Any],
        fourth: Iterable[Any],
        /,
        *more: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[_T]: ...
    @overload
    def map(
        self,
        fn: Callable[..., _T],
        first: Iterable[Any],
        second: Iterable[Any],
        third: Iterable[Any],
        fourth: Iterable[Any],
        /,
        *more: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[_T]: ...
    def map(
        self, fn: Callable[..., Any], /, *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """Results of ``map(fn, *iterables)`` in order, computed on nodes; see `concurrent.futures.Executor.map`.

        Parameters
        ----------
        fn
            A function of as many arguments as there are iterables.
        iterables
            Where its arguments come from. They are read at once, until the shortest ends.
        timeout
            Seconds from this call. A result that is not there by then raises `TimeoutError`; None for no limit.
        chunksize
            How many calls make one task, whose time limit is as many times the pool's. More than 1 pays where a call
            takes less than about a millisecond.

        Raises
        ------
        ConfigError
            `chunksize` or `timeout` is not a number in its range.
        PoolNotActive
            The pool is not open.
        """
        return _map(self.dispatcher, unwrapped(fn), iterables, timeout, chunksize)

    def run_call(self, call: PendingCall[_T], node: str | None = None) -> TaskFuture[_T]:
        """Run a call of a `sky.compute` function, as its operators ask; on the node of that name, or on any."""
        return self.dispatcher.call(call.function, call.args, call.kwargs, TaskOptions(node=node))


def _map(
    dispatcher: Dispatcher,
    function: Callable[..., Any],
    iterables: Sequence[Iterable[Any]],
    timeout: object,
    chunksize: object,
) -> Iterator[Any]:
    """Submit the calls now; their results in order, as an iterator."""
    end = _deadline(timeout)
    size = parse_count(chunksize, "chunksize")
    calls = zip(*iterables, strict=False)  # ends with the shortest, as the built-in one does
    futures: list[TaskFuture[Any]] = []
    try:
        if size == 1:
            futures.extend(dispatcher.call(function, args, {}) for args in calls)
            return _results(futures, end)
        for part in iter(lambda: list(itertools.islice(calls, size)), []):
            futures.append(dispatcher.call(Chunk(function, part), (), {}, TaskOptions(count=len(part))))
        return _flat(_results(futures, end))
    except BaseException:  # of an iterable
        _cancel(futures)
        raise


def _deadline(timeout: object) -> float:
    """When results must be there, by the clock of `time.monotonic`."""
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or math.isnan(timeout):
        raise ConfigError(f"timeout={timeout!r} is not a number of seconds; give one, or None for no limit")
    return time.monotonic() + timeout


def _results(futures: list[TaskFuture[Any]], end: float) -> Iterator[Any]:
    """Results in order. A failure, or an end of the iteration before the last, cancels what is left."""
    futures.reverse()
    try:
        while futures:
            # No reference to a future or a result stays here while the next one is waited for.
            yield _result(futures.pop(), end)
    finally:
        _cancel(futures)


def _flat(parts: Iterator[list[Any]]) -> Iterator[Any]:
    """What is in the lists, without keeping what was handed out."""
    for part in parts:
        part.reverse()
        while part:
            yield part.pop()


def _cancel(futures: list[TaskFuture[Any]]) -> None:
    for future in futures:
        future.cancel()


def _result(future: TaskFuture[Any], end: float) -> Any:
    try:
        return future.result(None if end == math.inf else max(end - time.monotonic(), 0.0))
    except BaseException:
        future.cancel()  # an interrupt, or the time limit, must not leave the task running
        raise
    finally:
        del future  # else the error's traceback would hold it, and it the error

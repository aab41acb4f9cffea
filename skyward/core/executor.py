"""A pool as an executor: `submit` and `map` like those of `concurrent.futures`, with their types.

How a pool starts and ends is in `skyward.core.pool`.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from skyward.core.errors import ConfigError
from skyward.core.function import CallRunner, Chunk, PendingCall, unwrapped
from skyward.core.spec import parse_count
from skyward.core.tasks.futures import TaskFuture

if TYPE_CHECKING:
    from skyward.core.tasks.dispatch import Dispatcher

__all__ = ["TaskExecutor"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")


class TaskExecutor(concurrent.futures.Executor, CallRunner):
    """An executor whose calls run on nodes. Subclasses implement `shutdown`."""

    def __reduce__(self) -> Any:
        raise TypeError("a pool belongs to the process that opened it; inside a task, use joblib.Parallel without it")

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
            Any function that cloudpickle can pickle, or one decorated with `sky.compute`.
        args, kwargs
            Its arguments.

        Returns
        -------
        TaskFuture
            Its `cancel` stops even a call that is running, which the standard library's executors can't do. Its
            `result` raises whatever goes wrong with the task.

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
        """Return the results of ``map(fn, *iterables)`` in order, computed on nodes.

        See `concurrent.futures.Executor.map`.

        Parameters
        ----------
        fn
            A function of as many arguments as there are iterables.
        iterables
            The arguments. They are read immediately, until the shortest iterable ends.
        timeout
            Seconds from this call after which a missing result raises `TimeoutError`; None for no limit.
        chunksize
            Number of calls per task; the task's time limit grows with it. A value above 1 pays off if a call takes less
            than about a millisecond.

        Raises
        ------
        ConfigError
            `chunksize` or `timeout` is not a number, or is out of range.
        PoolNotActive
            The pool is not open.
        """
        return _map(self.dispatcher, unwrapped(fn), iterables, timeout, chunksize)

    def run_call(
        self, call: PendingCall[_T], node: str | None = None, *, first: int = -1, whole: object = None
    ) -> TaskFuture[_T]:
        """Run a call of a `sky.compute` function, for its operators.

        Parameters
        ----------
        call
            The call.
        node
            Name of the node to run it on; None for any.
        first, whole
            Its number among calls that are gathered, and the same object for all of these.
        """
        from skyward.core.tasks.jobs import TaskOptions  # noqa: PLC0415 - loaded while nodes start

        return self.dispatcher.call(call.function, call.args, call.kwargs, TaskOptions(node=node, whole=whole), first)


def _map(
    dispatcher: Dispatcher,
    function: Callable[..., Any],
    iterables: Sequence[Iterable[Any]],
    timeout: object,
    chunksize: object,
) -> Iterator[Any]:
    """Submit the calls now; return an iterator over their results, in order."""
    end = _deadline(timeout)
    size = parse_count(chunksize, "chunksize")
    from skyward.core.tasks.jobs import TaskOptions  # noqa: PLC0415 - loaded while nodes start
    from skyward.core.tasks.kept_calls import is_kept  # noqa: PLC0415 - as above

    if is_kept(function):  # each result is kept by itself
        size = 1
    calls = zip(*iterables, strict=False)  # ends with the shortest, like the built-in map
    futures: list[TaskFuture[Any]] = []
    whole = object()
    try:
        if size == 1:
            options = TaskOptions(whole=whole)
            futures.extend(dispatcher.call(function, args, {}, options, first) for first, args in enumerate(calls))
            return _results(futures, end)
        for part in iter(lambda: list(itertools.islice(calls, size)), []):
            options = TaskOptions(count=len(part), whole=whole)
            futures.append(dispatcher.call(Chunk(function, part), (), {}, options, len(futures) * size))
        return _flat(_results(futures, end))
    except BaseException:  # an iterable raised
        _cancel(futures)
        raise


def _deadline(timeout: object) -> float:
    """When all results are due, by `time.monotonic`."""
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or math.isnan(timeout):
        raise ConfigError(f"timeout={timeout!r} is not a number of seconds; use a number, or None for no limit")
    return time.monotonic() + timeout


def _results(futures: list[TaskFuture[Any]], end: float) -> Iterator[Any]:
    """Yield results in order. A failure, or leaving the iteration early, cancels the rest."""
    futures.reverse()
    try:
        while futures:
            # Keep no reference to a future or a result while waiting for the next.
            yield _result(futures.pop(), end)
    finally:
        _cancel(futures)


def _flat(parts: Iterator[list[Any]]) -> Iterator[Any]:
    """Yield the items of the lists, without keeping those already yielded."""
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
        del future  # otherwise the error's traceback would refer to it, and it to the error

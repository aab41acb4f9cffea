"""`@sky.compute` and the operators: functions that run on a pool, without joblib.

``f(x)`` of a `compute` function is a pending call; it runs when it meets a pool::

    f(x) >> pool            the result                       f(x) @ pool     results of every node, in node order
    f(x) > pool             a concurrent.futures.Future      f.local(x)      the result, computed here
    (f(1) & g(2)) >> pool   the results of several calls that run in parallel; gather(f(1), g(2)) is the same
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from skyward.core.dispatch import TaskFuture, TaskOptions
from skyward.core.errors import ConfigError
from skyward.core.pool import Compute

__all__ = ["ComputeFunction", "Gathered", "PendingCall", "compute", "gather"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class PendingCall(Generic[_T]):
    """A call that has not run. Runs each time it meets a pool."""

    def __init__(self, function: Callable[..., _T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        return f"<PendingCall {getattr(self.function, '__qualname__', self.function)}; run it by `call >> pool`>"

    def __bool__(self) -> bool:
        # `a > pool > b` and `if f(x):` would quietly do something else than they say.
        raise ConfigError(f"{self!r} has no truth value: it has not run")

    def _submit(self, pool: Compute, node: str | None = None) -> TaskFuture[_T]:
        options = TaskOptions(node=node)
        return _pool(pool).dispatcher.submit(self.function, *self.args, options=options, **self.kwargs)

    def __gt__(self, pool: Compute) -> TaskFuture[_T]:
        return self._submit(pool)

    def __rshift__(self, pool: Compute) -> _T:
        return _result(self._submit(pool))

    def __matmul__(self, pool: Compute) -> list[_T]:
        return _results([self._submit(pool, node) for node in _pool(pool).node_names])

    def __and__(self, other: PendingCall[Any] | Gathered) -> Gathered:
        return gather(self, other)


class Gathered:
    """Several pending calls that run in parallel."""

    def __init__(self, calls: tuple[PendingCall[Any], ...]) -> None:
        self.calls = calls

    def __repr__(self) -> str:
        return f"<Gathered {len(self.calls)} calls; run them by `calls >> pool`>"

    def __bool__(self) -> bool:
        raise ConfigError(f"{self!r} has no truth value: they have not run")

    def __and__(self, other: PendingCall[Any] | Gathered) -> Gathered:
        return gather(self, other)

    def __gt__(self, pool: Compute) -> list[TaskFuture[Any]]:
        return [call > pool for call in self.calls]

    def __rshift__(self, pool: Compute) -> list[Any]:
        return _results(self > pool)


class ComputeFunction(Generic[_P, _T]):
    """A function whose calls wait for a pool; made by `compute`."""

    def __init__(self, function: Callable[_P, _T]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __repr__(self) -> str:
        return f"<compute function {getattr(self.function, '__qualname__', self.function)}>"

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> PendingCall[_T]:  # noqa: D102  the class says it
        return PendingCall(self.function, args, kwargs)

    def local(self, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call the function here and now."""
        return self.function(*args, **kwargs)


def compute(function: Callable[_P, _T]) -> ComputeFunction[_P, _T]:
    """Make a function's calls wait for a pool.

    Parameters
    ----------
    function
        Any function that cloudpickle can carry.

    Raises
    ------
    ConfigError
        It is not callable.
    """
    if not callable(function):
        raise ConfigError(f"@sky.compute decorates functions, not {function!r}")
    return ComputeFunction(function)


def gather(*calls: PendingCall[Any] | Gathered) -> Gathered:
    """Several pending calls as one, which run in parallel and give their results in order.

    Raises
    ------
    ConfigError
        Something is not a pending call.
    """
    flat: list[PendingCall[Any]] = []
    for call in calls:
        if isinstance(call, Gathered):
            flat += call.calls
        elif isinstance(call, PendingCall):
            flat.append(call)
        else:
            raise ConfigError(f"gather takes calls of @sky.compute functions, not {call!r}")
    return Gathered(tuple(flat))


def _pool(value: object) -> Compute:
    if not isinstance(value, Compute):
        raise ConfigError(f"a call of a @sky.compute function runs on a sky.Compute, not on {value!r}")
    return value


def _result(future: TaskFuture[_T]) -> _T:
    try:
        return future.result()
    except BaseException:
        future.cancel()  # an interrupt must not leave the task running
        raise


def _results(futures: list[TaskFuture[Any]]) -> list[Any]:
    """All results in order; the first failure, in time, ends the others."""
    try:
        done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        for future in done:
            if (error := future.exception()) is not None:
                raise error
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise

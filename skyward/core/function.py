"""`@sky.compute` and its operators: run functions on a pool, without joblib.

Calling a `compute` function returns a pending call, which runs when it is combined with a pool::

    f(x) >> pool            the result                       f(x) @ pool     results of every node, in node order
    f(x) > pool             a concurrent.futures.Future      f.local(x)      the result, computed here
    (f(1) & g(2)) >> pool   the results of several calls that run in parallel; gather(f(1), g(2)) is the same

Slots import this module too: if a task returns a pending call, the slot runs it, since nothing else would.
"""

from __future__ import annotations

import concurrent.futures
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, TypeVar, TypeVarTuple, cast, overload

from skyward.core.errors import ConfigError, PayloadError
from skyward.core.labels import label
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.several_calls import Call, SeveralCalls, Traceable, latest

__all__ = [
    "CallRunner",
    "Chunk",
    "ComputeFunction",
    "Gathered",
    "PendingCall",
    "compute",
    "failed_call",
    "gather",
    "run_pending",
    "unwrapped",
]

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_S = TypeVar("_S")
_T = TypeVar("_T")
_R_co = TypeVar("_R_co", covariant=True)
_Ts = TypeVarTuple("_Ts")
_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")
_D = TypeVar("_D")
_E = TypeVar("_E")


class CallRunner(ABC):
    """What runs pending calls: a `sky.Compute`. Called from user threads; does not block."""

    @property
    @abstractmethod
    def node_names(self) -> list[str]:
        """Names of the nodes that are ready, in order. Raises `PoolNotActive`."""

    @abstractmethod
    def run_call(
        self, call: PendingCall[_T], node: str | None = None, *, first: int = -1, whole: object = None
    ) -> TaskFuture[_T]:
        """Run a call, on the named node or on any. Raises `PoolNotActive`.

        Parameters
        ----------
        call, node
            The call, and the node; None for any.
        first, whole
            Its number among calls that are gathered, and the same object for all of these.
        """


class PendingCall(Generic[_T]):
    """A call that has not run yet. It runs each time it is combined with a pool.

    Parameters
    ----------
    function
        The function to call.
    args, kwargs
        Its arguments.
    """

    def __init__(self, function: Callable[..., _T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        return f"<PendingCall {self._name}; run it with `call >> pool`>"

    @property
    def _name(self) -> str:
        return str(getattr(self.function, "__qualname__", self.function))

    def __bool__(self) -> bool:
        # `a > pool > b` and `if f(x):` would silently do the wrong thing.
        raise ConfigError(f"{self!r} has no truth value, because it has not run")

    def __reduce__(self) -> NoReturn:
        # As an argument or inside a result it would arrive without having run, which is never intended.
        raise PayloadError(
            f"this call of {self._name} has not run: pass its result ({self._name}(...) >> pool), or the function and "
            f"its arguments, as in pool.submit({self._name}, ...)"
        )

    def here(self) -> _T:
        """Run it in this process."""
        return self.function(*self.args, **self.kwargs)

    def __gt__(self, pool: CallRunner) -> TaskFuture[_T]:
        return _runner(pool).run_call(self)

    def __rshift__(self, pool: CallRunner) -> _T:
        return _result(_runner(pool).run_call(self))

    def __matmul__(self, pool: CallRunner) -> list[_T]:
        runner = _runner(pool)
        return _results([runner.run_call(self, node) for node in runner.node_names])

    @overload
    def __and__(self, other: PendingCall[_A]) -> Gathered[tuple[_T, _A]]: ...
    @overload
    def __and__(self, other: Gathered[tuple[*_Ts]]) -> Gathered[tuple[_T, *_Ts]]: ...
    @overload
    def __and__(self, other: Gathered[Any]) -> Gathered[Any]: ...
    def __and__(self, other: PendingCall[Any] | Gathered[Any]) -> Gathered[Any]:
        return _gathered(self, other)


class Gathered(Generic[_R_co]):
    """Several pending calls that run in parallel.

    Their results are a list. Type checkers see a tuple if the calls are listed one by one, since only that gives each
    result its own type; `asyncio.gather` does the same.
    """

    def __init__(self, calls: tuple[PendingCall[Any], ...]) -> None:
        self.calls = calls

    def __repr__(self) -> str:
        return f"<Gathered {len(self.calls)} calls; run them with `calls >> pool`>"

    def __bool__(self) -> bool:
        raise ConfigError(f"{self!r} has no truth value, because they have not run")

    def here(self) -> _R_co:
        """Run them in this process, one after another."""
        return cast("_R_co", [run_pending(call) for call in self.calls])

    @overload
    def __and__(self: Gathered[tuple[*_Ts]], other: PendingCall[_A]) -> Gathered[tuple[*_Ts, _A]]: ...
    @overload
    def __and__(self: Gathered[tuple[*_Ts]], other: Gathered[tuple[_A, _B]]) -> Gathered[tuple[*_Ts, _A, _B]]: ...
    @overload
    def __and__(self: Gathered[list[_A]], other: PendingCall[_A] | Gathered[list[_A]]) -> Gathered[list[_A]]: ...
    @overload
    def __and__(self, other: PendingCall[Any] | Gathered[Any]) -> Gathered[Any]: ...
    def __and__(self, other: PendingCall[Any] | Gathered[Any]) -> Gathered[Any]:
        return _gathered(self, other)

    @overload
    def __gt__(self: Gathered[tuple[_A, _B]], pool: CallRunner) -> tuple[TaskFuture[_A], TaskFuture[_B]]: ...
    @overload
    def __gt__(
        self: Gathered[tuple[_A, _B, _C]], pool: CallRunner
    ) -> tuple[TaskFuture[_A], TaskFuture[_B], TaskFuture[_C]]: ...
    @overload
    def __gt__(self: Gathered[list[_A]], pool: CallRunner) -> list[TaskFuture[_A]]: ...
    @overload
    def __gt__(self, pool: CallRunner) -> Sequence[TaskFuture[Any]]: ...
    def __gt__(self, pool: CallRunner) -> Any:
        return self._submit(pool)

    def __rshift__(self, pool: CallRunner) -> _R_co:
        return cast("_R_co", _results(self._submit(pool)))

    def _submit(self, pool: CallRunner) -> list[TaskFuture[Any]]:
        runner, whole = _runner(pool), object()
        return [runner.run_call(call, first=number, whole=whole) for number, call in enumerate(self.calls)]


class ComputeFunction(Generic[_P, _T]):
    """A function whose calls wait for a pool; created by `compute`."""

    def __init__(self, function: Callable[_P, _T]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __repr__(self) -> str:
        return f"<compute function {getattr(self.function, '__qualname__', self.function)}>"

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> PendingCall[_T]:  # noqa: D102  the class says it
        return PendingCall(self.function, args, kwargs)

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> ComputeFunction[_P, _T]: ...
    @overload
    def __get__(
        self: ComputeFunction[Concatenate[_S, _Q], _T], instance: _S, owner: type | None = None
    ) -> ComputeFunction[_Q, _T]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> ComputeFunction[Any, Any]:  # as functions do
        bind = getattr(self.function, "__get__", None)
        return self if instance is None or bind is None else ComputeFunction(bind(instance, owner))

    def local(self, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call the function in this process, immediately."""
        return self.function(*args, **kwargs)


def compute(function: Callable[_P, _T]) -> ComputeFunction[_P, _T]:
    """Decorate a function so that its calls wait for a pool.

    Parameters
    ----------
    function
        Any function that cloudpickle can pickle.

    Returns
    -------
    ComputeFunction
        Calling it runs nothing yet. ``f(x) >> pool`` returns the result, ``f(x) > pool`` a future, ``f(x) @ pool`` the
        results of all nodes, and ``f.local(x)`` runs it in this process.

    Raises
    ------
    ConfigError
        `function` is not callable.

    Examples
    --------
    >>> import skyward as sky
    >>> @sky.compute
    ... def double(x):
    ...     return 2 * x
    >>> double.local(4)
    8
    """
    if not callable(function):
        raise ConfigError(f"@sky.compute decorates functions, not {function!r}")
    return ComputeFunction(function)


@overload
def gather(a: PendingCall[_A], b: PendingCall[_B], /) -> Gathered[tuple[_A, _B]]: ...
@overload
def gather(a: PendingCall[_A], b: PendingCall[_B], c: PendingCall[_C], /) -> Gathered[tuple[_A, _B, _C]]: ...
@overload
def gather(
    a: PendingCall[_A], b: PendingCall[_B], c: PendingCall[_C], d: PendingCall[_D], /
) -> Gathered[tuple[_A, _B, _C, _D]]: ...
@overload
def gather(
    a: PendingCall[_A], b: PendingCall[_B], c: PendingCall[_C], d: PendingCall[_D], e: PendingCall[_E], /
) -> Gathered[tuple[_A, _B, _C, _D, _E]]: ...
@overload
def gather(*calls: PendingCall[_T]) -> Gathered[list[_T]]: ...
@overload
def gather(*calls: PendingCall[Any] | Gathered[Any]) -> Gathered[Any]: ...
def gather(*calls: PendingCall[Any] | Gathered[Any]) -> Gathered[Any]:
    """Combine pending calls, to run in parallel and return their results in order.

    Parameters
    ----------
    calls
        Calls of `compute` functions, or what `gather` or ``&`` returned for such calls.

    Returns
    -------
    Gathered
        ``gather(f(1), g(2)) >> pool`` returns the list of results, ``> pool`` the list of futures.

    Raises
    ------
    ConfigError
        An argument is not a pending call.
    """
    return _gathered(*calls)


def _gathered(*calls: PendingCall[Any] | Gathered[Any]) -> Gathered[Any]:
    flat: list[PendingCall[Any]] = []
    for call in calls:
        if isinstance(call, Gathered):
            flat += call.calls
        elif isinstance(call, PendingCall):
            flat.append(call)
        else:
            raise ConfigError(f"gather takes calls of @sky.compute functions, not {call!r}")
    return Gathered(tuple(flat))


def unwrapped(function: Any) -> Any:
    """Return the function that `compute` wrapped, also inside a `functools.partial`; any other function as it is."""
    if isinstance(function, ComputeFunction):
        return unwrapped(function.function)
    if type(function) is functools.partial and (inner := unwrapped(function.func)) is not function.func:
        return functools.partial(inner, *function.args, **function.keywords)
    return function


def run_pending(result: Any) -> Any:
    """Return a task's result; if that is a pending call, run it here and return what it returns."""
    while isinstance(result, (PendingCall, Gathered)):
        result = result.here()
    return result


def failed_call(function: Any, args: Any, kwargs: Any) -> tuple[int, Call] | None:
    """Return the number of the call of a task that failed in this slot, and the call; None if no call was running.

    Parameters
    ----------
    function, args, kwargs
        The task.
    """
    return function.reached() if isinstance(function, Traceable) else (0, (function, args, kwargs))


class Chunk(SeveralCalls):
    """Several calls of a function as one task."""

    __slots__ = ("_progress", "calls", "function")

    def __init__(self, function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> None:
        self.function = function
        self.calls = calls
        self._progress: Any = None

    def __reduce__(self) -> Any:
        return Chunk, (self.function, self.calls)

    def __repr__(self) -> str:
        return f"<Chunk of {self.label}>"

    @property
    def label(self) -> str:
        """Its name in messages."""
        return label(self.function)

    def each(self) -> Sequence[Call]:
        """See `Traceable`."""
        return [(self.function, args, {}) for args in self.calls]

    def parts(self) -> Sequence[Call]:
        """See `SeveralCalls`."""
        return self.each()

    def only(self, wanted: Sequence[int]) -> Chunk:
        """See `SeveralCalls`."""
        return Chunk(self.function, [self.calls[number] for number in wanted])

    def __call__(self) -> list[Any]:
        """Run them one after another, in a slot."""
        self._progress = calls = iter(self.calls)
        return [run_pending(self.function(*args)) for args in calls]

    def reached(self) -> tuple[int, Call] | None:
        """See `Traceable`."""
        return latest(self.each(), self._progress)


def _runner(value: object) -> CallRunner:
    if not isinstance(value, CallRunner):
        raise ConfigError(f"a call of a @sky.compute function runs on a sky.Compute, not on {value!r}")
    return value


def _result(future: TaskFuture[_T]) -> _T:
    try:
        return future.result()
    except BaseException:
        future.cancel()  # an interrupt must not leave the task running
        raise


def _results(futures: list[TaskFuture[_T]]) -> list[_T]:
    """All results in order; a failure cancels the others. Of several failures, the first in order is raised."""
    try:
        concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        for future in futures:
            if future.done() and (error := future.exception()) is not None:
                raise error
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise

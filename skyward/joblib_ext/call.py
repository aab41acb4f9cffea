"""The slots of a pool as used by one ``Parallel``: sends its batches and keeps the slots busy."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from joblib.parallel import BatchedCalls

from skyward.core.errors import ConfigError, PoolNotActive
from skyward.core.events import Event, NodeGone, NodeReady
from skyward.core.payload import pickling
from skyward.core.payload.memory_maps import Named
from skyward.core.pool import Compute
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import TaskGroup, TaskOptions
from skyward.core.tasks.kept_calls import KINDS, is_kept
from skyward.core.tasks.kept_calls import failed as failed_task
from skyward.joblib_ext import stand_ins, warning_filters
from skyward.joblib_ext.backpressure import Backlog
from skyward.joblib_ext.batch import Batch, Initializer, plain_parts
from skyward.joblib_ext.function_cache import StableFunctions
from skyward.joblib_ext.joblib_private import counted_jobs, failed, raise_in_caller, untaken
from skyward.joblib_ext.joined import JoinedFuture
from skyward.joblib_ext.lookahead import Supply, wanted
from skyward.joblib_ext.memory_cache import OneOfBatch, cached_call

__all__ = ["CallSettings", "ParallelCall", "jobs_of"]

_numbers = itertools.count(1)  # of calls

_Callback = Any  # joblib's `BatchCompletionCallBack`
_Future = concurrent.futures.Future[Any]

# joblib's mmap_mode -> TaskOptions.mode; to joblib, w+ is the same as r+, and None means no maps at all.
_MODES = {"r": "r", "c": "c", "r+": "r+", "w+": "r+", None: "c"}

# Arguments that joblib gives to every backend, or users to joblib's own backends, and that have no meaning here: there
# are no temporary folders, and no processes started for a call.
_IGNORED = frozenset({"temp_folder", "verbose", "context", "idle_worker_timeout"})


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How tasks run, as configured by the user.

    Attributes
    ----------
    large, mode
        As in `TaskOptions`.
    initializer
        Runs once in each slot process before its first batch; None for nothing.
    """

    large: int | None
    mode: str
    initializer: Initializer | None

    @classmethod
    def read(cls, given: Mapping[str, Any], named: Named) -> CallSettings:
        """Read the keyword arguments of a backend.

        Parameters
        ----------
        given
            The keyword arguments.
        named
            See `pickling.dumps`.

        Raises
        ------
        ConfigError
            `mmap_mode` is unknown.
        PayloadError
            The initializer can't be pickled.
        """
        rest = {name: value for name, value in given.items() if name not in _IGNORED}
        max_size, mode = rest.pop("max_nbytes", 1 << 20), rest.pop("mmap_mode", "r")
        initializer, args = rest.pop("initializer", None), rest.pop("initargs", ())
        if rest:
            names = ", ".join(map(repr, sorted(rest)))
            warnings.warn(f"the skyward backend of joblib ignores {names}", UserWarning, stacklevel=5)
        if mode not in _MODES:
            raise ConfigError(f"mmap_mode={mode!r}: it must be one of 'r', 'c', 'r+', 'w+' or None")
        return cls(
            large=None if max_size is None or mode is None else int(max_size) + 1,  # joblib maps larger arrays only
            mode=_MODES[mode],
            initializer=None if initializer is None else Initializer.pack(initializer, args or (), named),
        )


def jobs_of(n_jobs: int, slots: int) -> int:
    """Return how many tasks run at once, by joblib's arithmetic: -1 is all slots, -2 all but one."""
    return n_jobs if n_jobs > 0 else max(slots + 1 + n_jobs, 1)


class ParallelCall:
    """The slots as used by one ``Parallel``, from its `configure` to its `terminate` or its abort.

    That may be several calls of the object, inside ``with Parallel(...) as parallel``: see `start_call`.

    Parameters
    ----------
    pool
        An open pool.
    n_jobs
        As given to joblib.
    settings
        How tasks run.
    threads
        BLAS and OpenMP threads of each task.
    level
        Nesting level of calls inside tasks; None if the batches carry a backend other than the usual one.
    """

    def __init__(
        self, pool: Compute, n_jobs: int, settings: CallSettings, threads: int | None, level: int | None
    ) -> None:
        _register_with_pickler()
        self.pool = pool
        self._level = level
        self._n_jobs = n_jobs
        self._settings = settings
        self._options = TaskOptions(
            threads=None if threads is None else int(threads),  # numpy's integers can't be sent
            large=settings.large,
            mode=settings.mode,
            proxies=() if settings.initializer is None else settings.initializer.proxies,
        )
        self._lock = threading.Lock()  # guards _futures and _aborted
        self._futures: set[_Future] = set()
        self._aborted = False
        self._slots = 1
        self._supply: Supply | None = None
        self._backlog: Backlog | None = None
        self._unsubscribe = _listen(self)
        self.start_call(None)

    def start_call(self, parallel: Any) -> None:
        """Begin a call of `parallel`. With None, there is nobody to ask for more batches."""
        limit = None if self._n_jobs == -1 else self._n_jobs if self._n_jobs > 0 else self._n_jobs + 1
        dispatcher = self.pool.dispatcher
        code = None if dispatcher.code is None else dispatcher.code.now(look=True)
        group = TaskGroup(limit, arrays=dispatcher.arrays(limit), change=dispatcher.surroundings.now(), code=code)
        self._options = replace(self._options, group=group)
        self._functions = StableFunctions()
        self._number = next(_numbers)
        self._submitted = 0
        self.stop_call()
        jobs = self.count()
        if counted_jobs(parallel) is not None:
            self._supply = Supply(parallel, jobs)
            self.count()  # a node may have joined before the supply could be notified

    def stop_call(self) -> None:
        """End the call and drop the batches held back."""
        self._supply = None
        backlog, self._backlog = self._backlog, None
        if backlog is not None:
            backlog.close()

    def count(self) -> int:
        """Count the slots again, since they come and go; return how many tasks may run at once."""
        total = self.pool.total_slots
        jobs = jobs_of(self._n_jobs, total)
        self._slots = max(min(jobs, total), 1)
        if (supply := self._supply) is not None:
            supply.count(jobs)
        return jobs

    def renewed(self) -> ParallelCall:
        """Return another object like this one, without tasks."""
        return ParallelCall(self.pool, self._n_jobs, self._settings, self._options.threads, self._level)

    def close(self) -> None:
        """Release what this object holds; no call follows."""
        self._unsubscribe()
        self.stop_call()

    def submit(self, calls: Any, callback: _Callback | None) -> _Future:
        """Send a batch, or hold it back while the caller is slow to take results.

        Raises
        ------
        PoolNotActive
            The pool is not open.
        """
        if (supply := self._supply) is not None:
            supply.begin()
        first = self._submitted
        self._submitted = first + len(calls)
        if callback is None:
            return self._send(calls, callback, first)
        backlog = self._backlog
        if backlog is None:
            kept = untaken(getattr(callback, "parallel", None), self._out)
            backlog = self._backlog = Backlog(kept, lambda: self._slots, lambda: self.pool.is_active)
        if backlog.hold(partial(self._send_late, calls, callback, first)):
            return concurrent.futures.Future()  # joblib only keeps it, and waits for the callback
        return self._send(calls, callback, first)

    def _out(self) -> int:
        backlog = self._backlog
        return len(self._futures) + (0 if backlog is None else len(backlog))

    def _send_late(self, calls: Any, callback: _Callback, first: int) -> None:
        try:
            self._send(calls, callback, first)
        except BaseException as error:
            callback(failed(error))

    def _send(self, calls: Any, callback: _Callback | None, first: int) -> _Future:
        usual = self._level is not None and type(calls) is BatchedCalls
        future: TaskFuture[Any]
        if usual and _has_kept(calls.items):
            future = self._send_each(calls.items, first)
        else:
            count = len(calls)
            options = self._options if count == 1 else replace(self._options, count=count)
            batch = (
                self._batch(calls.items)
                if usual
                else Batch(calls, None, self._settings.initializer, None, self._number)
            )
            future = self.pool.dispatcher.call(batch, (), {}, options, first)
        return self._watch(future, callback)

    def _batch(self, items: Sequence[tuple[Any, Any, Any]]) -> Batch:
        return Batch(items, self._level, self._settings.initializer, self._function(items), self._number)

    def _send_each(self, items: Sequence[tuple[Any, Any, Any]], first: int) -> TaskFuture[Any]:
        """Send the calls of a batch as tasks of their own, since the results of some are looked up and cached."""
        parts: list[TaskFuture[Any]] = []
        try:
            for number, item in enumerate(items, first):
                parts.append(self._send_one(item, number))
        except BaseException:
            for part in parts:
                part.cancel()
            raise
        return JoinedFuture(parts)

    def _send_one(self, item: tuple[Any, Any, Any], number: int) -> TaskFuture[Any]:
        dispatcher, (function, args, kwargs) = self.pool.dispatcher, item
        if not is_kept(function):
            return dispatcher.call(self._batch([item]), (), {}, self._options, number)
        try:
            kept = cached_call(function, args, kwargs)
        except Exception as error:  # arguments that are missing, or can't be hashed
            return failed_task(error)
        batch = self._batch([(kept.function, args, kwargs)])
        return dispatcher.call_kept(OneOfBatch(kept), batch, (), {}, self._options, number)

    def _watch(self, future: TaskFuture[Any], callback: _Callback | None) -> _Future:
        with self._lock:
            self._futures.add(future)
            aborted = self._aborted
        if aborted:  # by another thread, while this one was pickling the batch
            future.cancel()
        done = partial(self._done, callback, time.monotonic())
        if future.done() and not future.cancelled() and future.exception() is None:
            # Its callback would submit the next batch from within this call, recursing without bound.
            threading.Thread(target=done, args=(future,), name="skyward-joblib", daemon=True).start()
        else:
            future.add_done_callback(done)
        return future

    def _function(self, items: Sequence[tuple[Any, Any, Any]]) -> bytes | None:
        """Return a cached pickle of the function that all calls of a batch share; None if there is none."""
        if not items:
            return None
        function = items[0][0]
        for other in items:
            if other[0] is not function:
                return None
        return self._functions.pickled(function)

    def abort(self) -> None:
        """Cancel the tasks that are out. Their callbacks are not called, since joblib has given up the call."""
        self.close()
        with self._lock:
            self._aborted = True
            futures, self._futures = self._futures, set()
        for future in futures:
            future.cancel()

    def _done(self, callback: _Callback | None, began: float, future: _Future) -> None:
        with self._lock:
            out = len(self._futures)
            self._futures.discard(future)
            if self._aborted:
                return
        if callback is None:
            return
        supply, backlog = self._supply, self._backlog  # both end with the call
        if backlog is not None and isinstance(future, TaskFuture):
            backlog.ended(future.result_size)
        try:
            callback(future)
            if supply is not None and isinstance(future, TaskFuture):
                turnaround = time.monotonic() - began
                if more := wanted(self._slots, out, future, turnaround):
                    supply.answered(callback, more, turnaround - (future.seconds or 0.0))
        except BaseException as error:
            # From the user's iterator, or from printing progress. Nothing up the stack would tell the waiting thread.
            raise_in_caller(callback.parallel, callback.parallel_call_id, error)


# Loops where a generator would do: they run for each batch.


def _has_kept(items: Sequence[tuple[Any, Any, Any]]) -> bool:
    """Whether the results of some calls are cached."""
    for function, _, _ in items:  # noqa: SIM110 - see above
        if type(function) in KINDS and is_kept(function):
            return True
    return False


def _listen(call: ParallelCall) -> Callable[[], object]:
    """Have a call count its slots whenever nodes come and go, as long as it lives; return a function that ends this."""
    weak = weakref.ref(call)

    def handle(_: Event) -> None:
        if (listening := weak()) is not None:
            with contextlib.suppress(PoolNotActive):  # the pool is being closed, which its tasks report
                listening.count()

    ending = weakref.finalize(call, call.pool.events.subscribe(handle, (NodeReady, NodeGone)))
    ending.atexit = False
    return ending


def _register_with_pickler() -> None:
    """Set up core for batches: the one place where its pickler and its tables are changed. May be repeated."""
    pickling.PLAIN[Batch] = plain_parts
    warning_filters.install([Batch, Initializer])
    stand_ins.install()

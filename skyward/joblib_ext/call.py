"""The slots of a pool as one ``Parallel`` uses them. The driver's half of the backend; never imported on a node."""

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
from skyward.core.payload.memory_maps import Named
from skyward.core.pool import Compute
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import TaskGroup, TaskOptions
from skyward.joblib_ext import warning_filters
from skyward.joblib_ext.backpressure import Backlog, untaken
from skyward.joblib_ext.batch import Batch, Initializer
from skyward.joblib_ext.function_cache import StableFunctions
from skyward.joblib_ext.lookahead import Supply, bring_back, failed, wanted

__all__ = ["ParallelCall", "Settings", "jobs_of"]

_numbers = itertools.count(1)  # of calls

_Callback = Any  # joblib's `BatchCompletionCallBack`
_Future = concurrent.futures.Future[Any]

# mmap_mode, and TaskOptions.mode; joblib takes w+ for r+, and None for no maps at all.
_MODES = {"r": "r", "c": "c", "r+": "r+", "w+": "r+", None: "c"}

# What joblib gives to every backend, or users of its own backends to them, and what has no meaning here: there are no
# temporary folders, and no processes that are started for a call.
_IGNORED = frozenset({"temp_folder", "verbose", "context", "idle_worker_timeout"})


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user told joblib about how tasks run."""

    large: int | None
    mode: str
    initializer: Initializer | None

    @classmethod
    def read(cls, given: Mapping[str, Any], named: Named) -> Settings:
        """From keyword arguments.

        Raises
        ------
        ConfigError
            There is no such `mmap_mode`.
        PayloadError
            The initializer can't be pickled.
        """
        rest = {name: value for name, value in given.items() if name not in _IGNORED}
        most, mode = rest.pop("max_nbytes", 1 << 20), rest.pop("mmap_mode", "r")
        initializer, args = rest.pop("initializer", None), rest.pop("initargs", ())
        if rest:
            names = ", ".join(map(repr, sorted(rest)))
            warnings.warn(f"the skyward backend of joblib ignores {names}", UserWarning, stacklevel=5)
        if mode not in _MODES:
            raise ConfigError(f"mmap_mode={mode!r}: it must be one of 'r', 'c', 'r+', 'w+' or None")
        return cls(
            large=None if most is None or mode is None else int(most) + 1,  # joblib maps what is larger
            mode=_MODES[mode],
            initializer=None if initializer is None else Initializer.pack(initializer, args or (), named),
        )


def jobs_of(n_jobs: int, slots: int) -> int:
    """How many tasks run at a time on so many slots, by joblib's arithmetic: -1 is all of them, -2 all but one."""
    return n_jobs if n_jobs > 0 else max(slots + 1 + n_jobs, 1)


class ParallelCall:
    """The slots as one ``Parallel`` uses them, from its `configure` to its `terminate` or its abort.

    Parameters
    ----------
    pool
        An open pool.
    n_jobs
        As joblib's.
    settings
        How tasks run.
    threads
        BLAS and OpenMP threads of each task.
    level
        Nesting level of what tasks call; None when the batches carry a backend that is not of the usual kind.
    """

    def __init__(self, pool: Compute, n_jobs: int, settings: Settings, threads: int | None, level: int | None) -> None:
        self.pool = pool
        self._level = level
        self._n_jobs = n_jobs
        self._settings = settings
        self._options = TaskOptions(
            threads=None if threads is None else int(threads),  # numpy's integers do not travel
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
        self._deaf = _listen(self)
        self.start_call(None)

    def start_call(self, parallel: Any) -> None:
        """The tasks from now on are of another call; None: of nobody's who can be asked for more."""
        limit = None if self._n_jobs == -1 else self._n_jobs if self._n_jobs > 0 else self._n_jobs + 1
        dispatcher = self.pool.dispatcher
        group = TaskGroup(limit, arrays=dispatcher.arrays(limit), change=dispatcher.surroundings.now())
        self._options = replace(self._options, group=group)
        self._functions = StableFunctions()
        self._number = next(_numbers)
        self.stop_call()
        jobs = self.count()
        if hasattr(parallel, "_cached_effective_n_jobs"):
            self._supply = Supply(parallel, jobs)
            self.count()  # a node may have come since, and not have been told of

    def stop_call(self) -> None:
        """The call has ended: what it held back is forgotten."""
        self._supply = None
        backlog, self._backlog = self._backlog, None
        if backlog is not None:
            backlog.close()

    def count(self) -> int:
        """Count the slots anew, since they come and go; returns how many tasks may run at a time."""
        total = self.pool.total_slots
        jobs = jobs_of(self._n_jobs, total)
        self._slots = max(min(jobs, total), 1)
        if (supply := self._supply) is not None:
            supply.count(jobs)
        return jobs

    def renewed(self) -> ParallelCall:
        """Another such crew, without the tasks."""
        return ParallelCall(self.pool, self._n_jobs, self._settings, self._options.threads, self._level)

    def close(self) -> None:
        """No call is made any more."""
        self._deaf()
        self.stop_call()

    def submit(self, calls: Any, callback: _Callback | None) -> _Future:
        """Send a batch, or hold it back while the caller is slow to take results. May raise PoolNotActive."""
        if (supply := self._supply) is not None:
            supply.begin()
        if callback is None:
            return self._send(calls, callback)
        backlog = self._backlog
        if backlog is None:
            kept = untaken(getattr(callback, "parallel", None), self._out)
            backlog = self._backlog = Backlog(kept, lambda: self._slots, lambda: self.pool.is_active)
        if backlog.hold(partial(self._send_late, calls, callback)):
            return concurrent.futures.Future()  # joblib keeps it, and waits for the callback only
        return self._send(calls, callback)

    def _out(self) -> int:
        backlog = self._backlog
        return len(self._futures) + (0 if backlog is None else len(backlog))

    def _send_late(self, calls: Any, callback: _Callback) -> None:
        try:
            self._send(calls, callback)
        except BaseException as error:
            callback(failed(error))

    def _send(self, calls: Any, callback: _Callback | None) -> _Future:
        count = len(calls)
        options = self._options if count == 1 else replace(self._options, count=count)
        if self._level is not None and type(calls) is BatchedCalls:
            function = self._function(calls.items)
            batch = Batch(calls.items, self._level, self._settings.initializer, function, self._number)
        else:
            batch = Batch(calls, None, self._settings.initializer, None, self._number)
        future = self.pool.dispatcher.submit(batch, options=options)
        with self._lock:
            self._futures.add(future)
            aborted = self._aborted
        if aborted:  # while the batch was pickled, in another thread
            future.cancel()
        done = partial(self._done, callback, time.monotonic())
        if future.done() and not future.cancelled() and future.exception() is None:
            # Its callback would submit the next batch from within this one, and so on without end.
            threading.Thread(target=done, args=(future,), name="skyward-joblib", daemon=True).start()
        else:
            future.add_done_callback(done)
        return future

    def _function(self, items: Sequence[tuple[Any, Any, Any]]) -> bytes | None:
        """The pickle of the function that all calls of a batch are of, made once; None where that can't be done."""
        if not items or any(other[0] is not items[0][0] for other in items):
            return None
        return self._functions.pickled(items[0][0])

    def abort(self) -> None:
        """Cancel the tasks that are out. joblib is not told of them any more: it has given the call up."""
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
            # From the user's iterator, or from printing progress. Nobody above us would tell the waiting thread.
            bring_back(callback.parallel, callback.parallel_call_id, error)


def _listen(call: ParallelCall) -> Callable[[], object]:
    """Let a crew count its slots whenever nodes come and go, as long as it lives; the returned function ends that."""
    weak = weakref.ref(call)

    def hear(event: Event) -> None:
        if isinstance(event, (NodeReady, NodeGone)) and (listening := weak()) is not None:
            with contextlib.suppress(PoolNotActive):  # it is being closed: its tasks are told
                listening.count()

    ending = weakref.finalize(call, call.pool.events.subscribe(hear))
    ending.atexit = False
    return ending


warning_filters.install([Batch, Initializer])

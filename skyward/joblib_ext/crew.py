"""The slots of a pool as one ``Parallel`` uses them. The driver's half of the backend; never imported on a node."""

from __future__ import annotations

import concurrent.futures
import inspect
import logging
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from joblib.parallel import BatchedCalls, Parallel

from skyward.core.dispatch import Call, TaskFuture, TaskOptions
from skyward.core.pool import Compute
from skyward.core.stable import StableFunctions
from skyward.joblib_ext import categories
from skyward.joblib_ext.backlog import Backlog, untaken
from skyward.joblib_ext.batch import Batch, Initializer

__all__ = ["Crew", "Settings", "failed"]

_log = logging.getLogger("skyward.joblib")

_DEFAULT_PRE_DISPATCH = inspect.signature(Parallel.__init__).parameters["pre_dispatch"].default

_FAR = 0.02  # seconds that a batch spends on its way and in queues; more than they take on one machine

_Callback = Callable[[Any], object]
_Future = concurrent.futures.Future[Any]

# What joblib gives to every backend, or users of its own backends to them, and what has no meaning here: there are no
# temporary folders, and no processes that are started for a call.
_IGNORED = frozenset({"temp_folder", "verbose", "context", "idle_worker_timeout"})


def failed(error: BaseException) -> _Future:
    """A future that has failed."""
    future: _Future = concurrent.futures.Future()
    future.set_exception(error)
    return future


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user told joblib about how tasks run."""

    large: int | None
    mode: str
    initializer: Initializer | None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Settings:
        """From keyword arguments. Raises PayloadError where the initializer can't be pickled."""
        rest = {name: value for name, value in given.items() if name not in _IGNORED}
        most, mode = rest.pop("max_nbytes", 1 << 20), rest.pop("mmap_mode", "r")
        initializer, args = rest.pop("initializer", None), rest.pop("initargs", ())
        if rest:
            names = ", ".join(map(repr, sorted(rest)))
            warnings.warn(f"the skyward backend of joblib ignores {names}", UserWarning, stacklevel=5)
        return cls(
            large=None if most is None or mode is None else int(most) + 1,  # joblib maps what is larger
            mode="r" if mode == "r" else "c",
            initializer=None if initializer is None else Initializer.pack(initializer, args or ()),
        )


class Crew:
    """The slots as one ``Parallel`` uses them, from its `configure` to its `terminate` or its abort.

    Parameters
    ----------
    pool
        An open pool.
    limit
        Tasks that may run at a time; None for no limit.
    settings
        How tasks run.
    threads
        BLAS and OpenMP threads of each task.
    level
        Nesting level of what tasks call; None when the batches carry a backend that is not of the usual kind.
    """

    def __init__(
        self, pool: Compute, limit: int | None, settings: Settings, threads: int | None, level: int | None
    ) -> None:
        self.pool = pool
        self._level = level
        self._limit = limit
        self._settings = settings
        self._options = TaskOptions(
            isolated=pool.worker.executor != "thread",  # joblib promises workers that share nothing
            threads=None if threads is None else int(threads),  # numpy's integers do not travel
            large=settings.large,
            mode=settings.mode,
        )
        self._lock = threading.Lock()  # guards _futures and _aborted
        self._futures: set[_Future] = set()
        self._aborted = False
        self._slots = limit or pool.total_slots
        self._wide = Widening(self._slots)
        self.start_call()

    def start_call(self) -> None:
        """The tasks from now on are of another call."""
        self._options = replace(self._options, call=Call(self._limit, arrays=self.pool.dispatcher.arrays()))
        self._functions = StableFunctions()
        self._backlog: Backlog | None = None

    def renewed(self) -> Crew:
        """Another such crew, without the tasks."""
        return Crew(self.pool, self._limit, self._settings, self._options.threads, self._level)

    def submit(self, calls: Any, callback: _Callback | None) -> _Future:
        """Send a batch, or hold it back while the caller is slow to take results. May raise PoolNotActive."""
        if callback is None:
            return self._send(calls, callback)
        if self._backlog is None:
            self._backlog = Backlog(untaken(getattr(callback, "parallel", None), self._out), self._slots)
        if self._backlog.hold(partial(self._send_late, calls, callback)):
            return concurrent.futures.Future()  # joblib keeps it, and waits for the callback only
        return self._send(calls, callback)

    def _out(self) -> int:
        return len(self._futures) + (0 if self._backlog is None else len(self._backlog))

    def _send_late(self, calls: Any, callback: _Callback) -> None:
        try:
            self._send(calls, callback)
        except BaseException as error:
            callback(failed(error))

    def _send(self, calls: Any, callback: _Callback | None) -> _Future:
        count = len(calls)
        options = self._options if count == 1 else replace(self._options, count=count)
        if self._level is not None and type(calls) is BatchedCalls:
            batch = Batch(calls.items, self._level, self._settings.initializer, self._function(calls.items))
        else:
            batch = Batch(calls, None, self._settings.initializer)
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
        if self._backlog is not None:
            self._backlog.close()
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
        if self._backlog is not None and isinstance(future, TaskFuture):
            self._backlog.ended(future.result_size)
        try:
            callback(future)
            if isinstance(future, TaskFuture):
                turnaround = time.monotonic() - began
                far = turnaround - (future.seconds or 0.0) > _FAR
                for _ in range(self._wide.wanted(out, future, turnaround)):
                    _dispatch_one_more(callback, far)
        except BaseException as error:
            # From the user's iterator, or from printing progress. Nobody above us would tell the waiting thread.
            _bring_back(callback, error)


class Widening:
    """When to have more batches out than joblib's default of two for each worker.

    Two are too few where tasks are short against the way to their node and back: slots would idle. By Little's law,
    the slots that work on average are the batches that are out, times the running time, over the time between sending
    and answer; while that is less than the slots there are, one more goes out, and several where most of them idle.
    Widened lazily so, never where the user chose `pre_dispatch`, and only up to a bound of batches and of bytes. What
    is too much by then is no harm: a node gives back what it has not begun (see `core.schedule`).

    Parameters
    ----------
    slots
        Tasks that may run at a time.
    """

    _BUSY = 0.97  # share of the slots that must work
    _IDLE = 0.5  # below this share several batches more go out
    _SEVERAL = 3
    _DEEPEST = 64  # batches out for each slot
    _BYTES = 64 << 20  # in all batches that are out, if all are as large as the last

    def __init__(self, slots: int) -> None:
        self._slots = slots

    def __repr__(self) -> str:
        return f"<Widening for {self._slots} slots>"

    def wanted(self, out: int, future: TaskFuture[Any], turnaround: float) -> int:
        """How many more should go out, now that one of `out` batches came back after `turnaround` seconds."""
        if future.seconds is None or out >= self._slots * self._DEEPEST or out * future.size > self._BYTES:
            return 0
        working = out * future.seconds / max(turnaround, 1e-6) / self._slots
        return 0 if working >= self._BUSY else 1 if working >= self._IDLE else self._SEVERAL


def _dispatch_one_more(callback: Any, far: bool) -> None:
    """Let joblib take one more batch from the user's iterator, as it does itself when one has ended.

    joblib has no public way to do so; where it has changed, the default number of batches stays.
    """
    parallel = callback.parallel
    if parallel.pre_dispatch != _DEFAULT_PRE_DISPATCH:
        return  # an explicit choice is the user's
    if parallel.batch_size == "auto" and not far:
        return  # batches that grow by themselves soon are long enough, and grow less the more of them are out
    if parallel._call_id == callback.parallel_call_id:  # noqa: SLF001
        with parallel._lock:  # noqa: SLF001
            if parallel._original_iterator is not None:  # noqa: SLF001
                parallel.dispatch_next()


def _bring_back(callback: Any, error: BaseException) -> None:
    """Let the thread that waits in ``Parallel`` raise an error of joblib's callback.

    joblib has no public way to do so. This one is what it does itself with an iterator's exceptions.
    """
    try:
        parallel = callback.parallel
        if parallel._call_id != callback.parallel_call_id:  # noqa: SLF001
            return  # the call has ended
        tracker = type(callback)(time.time(), 0, parallel)
        if getattr(parallel, "return_ordered", True):  # joblib 1.3 knows nothing else
            parallel._jobs.append(tracker)  # noqa: SLF001
        tracker(failed(error))
    except Exception:
        _log.exception("joblib's callback failed with %r, and its caller could not be told", error)


categories.install([Batch, Initializer])

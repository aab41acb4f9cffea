"""The private parts of joblib that the backend uses, since there is no public way. No other module here touches any.

`TRIED` lists the versions of joblib that have them all. A test fails on others, and on attributes that are gone.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from joblib import hashing
from joblib import memory as joblib_memory
from joblib import parallel as joblib_parallel
from joblib._utils import eval_expr
from joblib.func_inspect import filter_args
from joblib.memory import MemorizedFunc

__all__ = [
    "KEEPS",
    "TRIED",
    "call_id_of",
    "call_of",
    "counted_jobs",
    "drop_ready_batches",
    "failed",
    "grow_batches",
    "is_source_known",
    "load_item",
    "lock_of",
    "pre_dispatched_tasks",
    "raise_if_aborting",
    "raise_in_caller",
    "set_counted_jobs",
    "shelved",
    "take_batch",
    "take_turns",
    "untaken",
    "verbosity",
    "with_items",
]

_log = logging.getLogger("skyward.joblib")

TRIED = ("1.3", "1.4", "1.5", "1.6")
"""Minor versions of joblib."""


def call_of(parallel: Any) -> object:
    """Return what identifies the current call of a `Parallel`."""
    return parallel._call_id  # noqa: SLF001


def lock_of(parallel: Any) -> AbstractContextManager[object]:
    """Return the lock under which a `Parallel` takes tasks from the user's iterator."""
    lock: AbstractContextManager[object] = parallel._lock  # noqa: SLF001
    return lock


def counted_jobs(parallel: Any) -> int | None:
    """Return how many tasks a call expects to run at once; None before it has counted."""
    jobs = getattr(parallel, "_cached_effective_n_jobs", None)
    return None if jobs is None else int(jobs)


def set_counted_jobs(parallel: Any, jobs: int) -> None:
    """Make a call expect `jobs` tasks at once; joblib cuts the rest of the user's iterator into batches accordingly."""
    parallel._cached_effective_n_jobs = jobs  # noqa: SLF001


def pre_dispatched_tasks(pre_dispatch: str, jobs: int) -> int:
    """Evaluate an expression like ``"2 * n_jobs"``."""
    return int(eval_expr(pre_dispatch.replace("n_jobs", str(jobs))))


def take_batch(parallel: Any, call: object) -> bool:
    """Make joblib send one more batch from the user's iterator, as it does itself whenever a batch has ended.

    Parameters
    ----------
    parallel, call
        The `Parallel`, and which call of it is meant.

    Returns
    -------
    bool
        False if the call has ended, or its iterator has.
    """
    with lock_of(parallel):
        if call_of(parallel) != call or parallel._original_iterator is None:  # noqa: SLF001
            return False
        parallel.dispatch_next()
        return True


def with_items(calls: Any, items: Sequence[Any]) -> Any:
    """Return a batch like a ``BatchedCalls``, of other calls."""
    other = copy.copy(calls)
    other.items, other._size = items, len(items)  # noqa: SLF001
    return other


def failed(error: BaseException) -> concurrent.futures.Future[Any]:
    """Return a future that has failed."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_exception(error)
    return future


def raise_in_caller(parallel: Any, call: object, error: BaseException) -> None:
    """Raise an error from one of our threads in the thread that waits in ``Parallel``.

    This is what joblib itself does with the exceptions of an iterator.

    Parameters
    ----------
    parallel, call
        The `Parallel`, and which call of it is meant; nothing happens if that has ended.
    error
        What to raise.
    """
    try:
        if call_of(parallel) != call:
            return
        tracker = joblib_parallel.BatchCompletionCallBack(time.time(), 0, parallel)
        if getattr(parallel, "return_ordered", True):  # joblib 1.3 has no other mode
            parallel._jobs.append(tracker)  # noqa: SLF001
        tracker(failed(error))
    except Exception:
        _log.exception("joblib's callback failed with %r, which could not be raised in the calling thread", error)


def raise_if_aborting(parallel: Any) -> None:
    """Raise the error for which a call is being aborted, if it is."""
    if getattr(parallel, "_aborting", False):
        parallel._raise_error_fast()  # noqa: SLF001


def drop_ready_batches(parallel: Any) -> None:
    """Drop batches made from an earlier call's tasks that joblib had not sent when that call failed."""
    ready = getattr(parallel, "_ready_batches", None)
    with contextlib.suppress(queue.Empty):
        while ready is not None:
            ready.get_nowait()


def untaken(parallel: Any, out: Callable[[], int]) -> Callable[[], int] | None:
    """Return a function that counts the batches of a generator call whose results have not been taken yet.

    Parameters
    ----------
    parallel
        The `Parallel`; for one that returns no generator there is nothing to count, and the answer is None.
    out
        Counts the batches that have not ended. joblib's own list holds all batches, but only those that have ended
        for ``generator_unordered``.
    """
    if not getattr(parallel, "return_generator", False):
        return None
    if getattr(parallel, "return_ordered", True):
        return lambda: len(parallel._jobs)  # noqa: SLF001
    return lambda: len(parallel._jobs) + out()  # noqa: SLF001


def grow_batches(backend: Any, short: float) -> None:
    """Double the next batch of joblib's `AutoBatchingMixin` if the last ones took less than `short` seconds."""
    if 0 < backend._smoothed_batch_duration < short:  # noqa: SLF001
        backend._effective_batch_size *= 2  # noqa: SLF001
        backend._smoothed_batch_duration *= 2  # noqa: SLF001


# --- joblib.Memory ---


KEEPS = hasattr(MemorizedFunc, "_get_args_id")
"""Whether this joblib has what follows; joblib 1.3 does not."""


def call_id_of(memorized: MemorizedFunc, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, str]:
    """Return the key of a cached function's call: the function's name in the cache, and the hash of its arguments.

    Parameters
    ----------
    memorized
        The function.
    args, kwargs
        Its arguments.

    Raises
    ------
    Exception
        Whatever joblib raises if arguments are missing, or can't be hashed.
    """
    return memorized.func_id, memorized._get_args_id(*args, **kwargs)  # noqa: SLF001


def is_source_known(memorized: MemorizedFunc) -> bool:
    """Whether a cache was made by the function's current source; if not, joblib clears it and records the source."""
    with contextlib.suppress(TypeError):  # a callable that is not hashable
        # joblib does not look again, while the function object is the same, and misses what another object has changed.
        joblib_memory._FUNCTION_HASHES.pop(memorized.func, None)  # noqa: SLF001
    return bool(memorized._check_previous_func_code(stacklevel=5))  # noqa: SLF001


def load_item(memorized: MemorizedFunc, call_id: tuple[str, str], metadata: Any = None) -> Any:
    """Load a result; raises anything if it is broken, or gone.

    Parameters
    ----------
    memorized, call_id
        The function, and the key of its call.
    metadata
        What is known of the call, to be printed; None: nothing.
    """
    began = time.time()
    item = memorized._load_item(call_id, metadata)  # noqa: SLF001
    if verbosity(memorized) > 4:  # as joblib does
        memorized._print_duration(time.time() - began, context="cache loaded ")  # noqa: SLF001
    return item


def shelved(memorized: MemorizedFunc, call_id: tuple[str, str], metadata: Any = None) -> Any:
    """Return a reference to a result, as ``call_and_shelve`` does.

    Parameters
    ----------
    memorized, call_id
        The function, and the key of its call.
    metadata
        What is known of the call; None to read it.
    """
    return memorized._get_memorized_result(call_id, metadata)  # noqa: SLF001


def verbosity(memorized: MemorizedFunc) -> int:
    """Return how much a cached function prints."""
    return int(memorized._verbose)  # noqa: SLF001


class _Forcing(threading.local):
    """Whether this thread is in `MemorizedFunc.call`, which computes in any case."""

    on = False


_forcing = _Forcing()


def take_turns(
    turn: Callable[[MemorizedFunc, tuple[str, str]], AbstractContextManager[bool]],
    stores: tuple[type[Any], ...],
    adopt: Callable[[MemorizedFunc], object],
) -> None:
    """Make cached functions with a pool's store compute identical calls one at a time. May be repeated.

    Parameters
    ----------
    turn
        Waits for the turn of a call; yields whether to look up its result once more.
    stores
        The class of such stores, and others that replace something. Stores have a method `look`, which asks for all
        that is about to be read of a call; all have `original`, which is hashed in their place.
    adopt
        Called with each function that is about to be used.
    """
    kind = MemorizedFunc
    if hasattr(kind._call, "original"):  # noqa: SLF001
        return
    compute, look, force = kind._call, kind._is_in_cache_and_valid, kind.call  # noqa: SLF001

    def _call(self: Any, call_id: tuple[str, str], args: Any, kwargs: Any, shelving: bool = False) -> Any:
        forced, _forcing.on = _forcing.on, False
        with turn(self, call_id) as again:
            if again and not forced and self._is_in_cache_and_valid(call_id):
                if shelving:
                    return self._get_memorized_result(call_id), {}
                with contextlib.suppress(Exception):  # broken, or gone again
                    return self._load_item(call_id), {}
            return compute(self, call_id, args, kwargs, shelving)

    def _is_in_cache_and_valid(self: Any, call_id: tuple[str, str]) -> Any:
        if isinstance(self.store_backend, stores):
            self.store_backend.look(call_id)
        return look(self, call_id)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        _forcing.on = True
        try:
            return force(self, *args, **kwargs)
        finally:
            _forcing.on = False

    _call.original = compute  # type: ignore[attr-defined]
    kind._call, kind._is_in_cache_and_valid, kind.call = _call, _is_in_cache_and_valid, call  # noqa: SLF001
    _hash_as_driver(stores, adopt)


def _hash_as_driver(stores: tuple[type[Any], ...], adopt: Callable[[MemorizedFunc], object]) -> None:
    """Make the arguments of functions with such a store have the hash here that they have in the driver."""
    hashed, save = MemorizedFunc._get_args_id, hashing.Hasher.save  # noqa: SLF001

    def _get_args_id(self: Any, *args: Any, **kwargs: Any) -> Any:
        adopt(self)  # here, since whatever is done with a call begins with its hash
        if not isinstance(self.store_backend, stores):
            return hashed(self, *args, **kwargs)
        # An array that is a memory map only because it was sent is hashed like the original array.
        return hashing.hash(filter_args(self.func, self.ignore, args, kwargs), coerce_mmap=True)

    def save_original(self: Any, obj: Any) -> None:
        save(self, obj.original if isinstance(obj, stores) else obj)

    MemorizedFunc._get_args_id = _get_args_id  # noqa: SLF001
    hashing.Hasher.save = save_original

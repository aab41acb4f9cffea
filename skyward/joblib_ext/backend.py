"""`SkywardBackend`, a joblib backend that runs on a pool. Importing this module registers it with joblib.

joblib calls `submit` from the thread that called ``Parallel`` and, later, from the thread that delivers results. An
exception there would be lost and the call would wait forever, so `submit` never raises: errors are reported by the
future that it returns. For the same reason an exception from joblib's own callback is raised in the calling thread.

joblib shares the backend of a `parallel_config` between all ``Parallel`` objects there. Ours serves one of them at a
time, and other objects get a copy of their own meanwhile, so that an abort affects no other call.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from joblib.parallel import (
    BACKENDS,
    AutoBatchingMixin,
    FallbackToBackend,
    SequentialBackend,
    cpu_count,
    get_active_backend,
    register_parallel_backend,
)

from skyward.core.errors import PoolNotActive
from skyward.core.pool import Compute
from skyward.joblib_ext import cache_desk, joblib_private, module_caches, open_pools
from skyward.joblib_ext.call import CallSettings, ParallelCall, jobs_of
from skyward.joblib_ext.slot_backend import NAME, PoolBackend, SlotBackend, nested

__all__ = ["SkywardBackend"]

_TASK = 5e-6  # seconds of overhead per task in its slot, so that a batch of any size takes some time
_SHORT = 0.005  # a batch that takes fewer seconds may be followed by one four times as large

_lock = threading.Lock()  # guards `SkywardBackend.parallel` of backends used by several threads

_Callback = Callable[[Any], object]
_Future = concurrent.futures.Future[Any]


class _RemoteOne(int):
    """One job that must not become a plain loop in the calling process, as joblib makes of ``n_jobs == 1``.

    A user who asks for all slots of a pool that has only one wants that slot.
    """

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = int.__hash__


class SkywardBackend(AutoBatchingMixin, PoolBackend):  # type: ignore[misc]
    """joblib backend that runs batches in the slots of a pool.

    Parameters
    ----------
    pool
        An open pool; None for the innermost that this thread has entered, or else the one entered last by any thread.
    nesting_level, inner_max_num_threads
        As given by joblib; the latter limits the BLAS and OpenMP threads of each task.
    **backend_kwargs
        ``initializer`` and ``initargs``: run once in each slot process before its first task.

    Notes
    -----
    An array larger than `max_nbytes` is sent to a node once and is a memory map there: read-only for
    ``mmap_mode="r"``, otherwise copy-on-write, since machines share no memory to write into. A `numpy.memmap` of the
    caller is the same file in tasks on this machine, and read-only in tasks elsewhere.

    Examples
    --------
    >>> from joblib import Parallel, delayed, parallel_config
    >>> with pool, parallel_config(backend=SkywardBackend(pool)):  # doctest: +SKIP
    ...     Parallel(n_jobs=-1)(delayed(pow)(i, 2) for i in range(10))
    """

    _effective_batch_size: int  # of `AutoBatchingMixin`

    def __init__(
        self,
        pool: Compute | None = None,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **backend_kwargs: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **backend_kwargs)
        self.parallel: Any = None
        self._given = pool
        self._workers: ParallelCall | None = None  # joblib's own tests look at this name
        self._successor: Any = None
        self.undo: Callable[[], object] | None = None
        self._took = threading.local()

    def __repr__(self) -> str:
        return f"<SkywardBackend of {self._given or 'the active pool'}>"

    def __reduce__(self) -> Any:
        """Pickle without the pool, which never leaves its process."""
        return type(self), (None, self.nesting_level, self.inner_max_num_threads)

    # --- which pool ---

    @property
    def pool(self) -> Compute:
        """The pool that this backend uses.

        Raises
        ------
        PoolNotActive
            No pool was given and none is open.
        """
        return self._given or open_pools.current()

    def retire(self, successor: Any, undo: Callable[[], object]) -> None:
        """Refer to another backend from now on, since a configuration of joblib can outlive the pool.

        Parameters
        ----------
        successor
            The other backend.
        undo
            Reverts that configuration, once it is on top of its thread's stack; see `unwind`.
        """
        self._successor = successor
        self.undo = undo

    @staticmethod
    def unwind() -> None:
        """Revert the configurations of closed pools on top of this thread's stack."""
        while isinstance(backend := get_active_backend()[0], SkywardBackend) and backend.undo is not None:
            undo, backend.undo = backend.undo, None
            undo()

    def _stand_in(self) -> Any:
        """The backend to use instead of this one, if any."""
        if self._successor is not None:
            return self._successor
        if self._given is None and open_pools.on_node() and open_pools.find() is None:
            return nested(self.nesting_level or 0)  # a call inside a task
        return None

    # --- how many ---

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks run at once, by joblib's arithmetic: -1 is all slots, -2 all but one.

        Raises
        ------
        ValueError
            ``n_jobs`` is 0.
        PoolNotActive
            ``n_jobs`` is negative and the pool is not open.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or n_jobs > 0:
            return 1 if n_jobs is None else int(n_jobs)
        if self._stand_in() is not None:
            return jobs_of(n_jobs, int(cpu_count()))
        count = jobs_of(n_jobs, self.pool.total_slots)
        return _RemoteOne(count) if count == 1 and self.parallel is not None else count

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **backend_kwargs: Any,
    ) -> int:
        """Prepare for the calls of one ``Parallel``; called by joblib.

        Parameters
        ----------
        n_jobs, parallel, prefer, require, **backend_kwargs
            As given by joblib; the last override those of `__init__`.

        Raises
        ------
        PoolNotActive
            The pool is not open.
        ConfigError, PayloadError
            See `CallSettings.read`.
        """
        if (other := self._stand_in()) is not None:
            raise FallbackToBackend(other)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        pool = self.pool
        _ = pool.total_slots  # raises PoolNotActive with the proper reason
        if parallel is not None and not self._serves(parallel):
            raise FallbackToBackend(self._of_its_own(parallel))
        usual = type(self).get_nested_backend is SkywardBackend.get_nested_backend
        level = (self.nesting_level or 0) + 1 if usual else None
        try:
            settings = CallSettings.read({**self.backend_kwargs, **backend_kwargs}, pool.dispatcher.named)
            self._workers = ParallelCall(pool, n_jobs, settings, self.inner_max_num_threads, level)
            return self.effective_n_jobs(n_jobs)
        except BaseException:
            self.terminate()
            raise

    def _serves(self, parallel: Any) -> bool:
        """Whether this backend serves that ``Parallel``, which it does from now on if it served none."""
        with _lock:
            if self.parallel is None:
                self.parallel = parallel
            return self.parallel is parallel

    def _of_its_own(self, parallel: Any) -> SkywardBackend:
        mine = type(self).__new__(type(self))
        mine.__dict__.update(vars(self), parallel=parallel, _workers=None, _took=threading.local())
        mine.reset_batch_stats()
        return mine

    # --- one call ---

    def start_call(self) -> None:
        """Begin a call of the ``Parallel``; called by joblib."""
        if self._workers is not None:
            joblib_private.drop_ready_batches(self.parallel)
            self._workers.start_call(self.parallel)

    def stop_call(self) -> None:
        """End the call; called by joblib."""
        if self._workers is not None:
            self._workers.stop_call()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Enclose joblib's retrieval of results; errors that arrive while it expects none are raised here."""
        joblib_private.raise_if_aborting(self.parallel)
        yield

    def submit(self, func: Any, callback: _Callback | None = None) -> _Future:
        """Run a batch. Never raises or blocks; the callback is called exactly once unless the call is aborted."""
        try:
            if self._workers is None:
                raise PoolNotActive("this Parallel call has ended")
            return self._workers.submit(func, callback)
        except BaseException as error:
            interrupt = not isinstance(error, Exception)
            if interrupt and threading.current_thread() is threading.main_thread():
                raise  # Ctrl-C in the thread that called Parallel and handles it
            future = joblib_private.failed(error)
        if callback is not None:
            callback(future)
        return future

    def apply_async(self, func: Any, callback: _Callback | None = None) -> _Future:
        """`submit`, under the name that joblib used before 1.5."""
        return self.submit(func, callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return the results of a batch; called in the delivery thread."""
        self._took.seconds = getattr(out, "seconds", None)
        try:
            return out.result()
        except concurrent.futures.CancelledError as error:
            if not out.cancelled():
                raise  # raised by the task itself
            raise PoolNotActive("the pool was closed before this joblib call had ended") from error

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """Record how long a batch ran; joblib's own figure includes the wait for a slot."""
        seconds, self._took.seconds = getattr(self._took, "seconds", None), None
        super().batch_completed(batch_size, duration if seconds is None else seconds + batch_size * _TASK)

    def compute_batch_size(self) -> Any:
        """Return how many tasks go into the next batch: joblib's answer, which doubles, and twice that for short ones.

        Each step costs a round trip, and twelve of them would be most of the duration of a call with thousands of tiny
        tasks.
        """
        if self.parallel is None:  # the call was ended by another thread
            return self._effective_batch_size
        joblib_private.grow_batches(self, _SHORT)
        return super().compute_batch_size()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the tasks of this call, running ones included; the pool stays open."""
        call, self._workers = self._workers, None
        if call is not None:
            call.abort()
            self._workers = call.renewed() if ensure_ready else None

    def terminate(self) -> None:
        """Release the workers of the ``Parallel``; called by joblib. The pool keeps its machines."""
        call, self._workers = self._workers, None
        if call is not None:
            call.close()
        self.reset_batch_stats()
        self.parallel = None


cache_desk.register()
if joblib_private.KEEPS:
    module_caches.register()
if BACKENDS.get(NAME, SlotBackend) is SlotBackend:  # a user may have a factory of that name already
    register_parallel_backend(NAME, SkywardBackend)

"""`SkywardBackend`: joblib's contract for backends, kept on a pool. Importing this module makes it known to joblib.

joblib calls `submit` from the thread that called ``Parallel`` and, later, from the thread that delivers results. There
an exception would be lost and the call would wait for ever, so `submit` never raises: whatever goes wrong is in the
future that it returns. For the same reason an exception out of joblib's own callback is brought back to the caller.

joblib shares the backend of a `parallel_config` between all ``Parallel`` objects there. Here it serves one of them at a
time, and others meanwhile get one of their own: only so does an abort touch its own call and no other.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from joblib.parallel import (
    BACKENDS,
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    cpu_count,
    get_active_backend,
    register_parallel_backend,
)

from skyward.core.errors import PoolNotActive
from skyward.joblib_ext import active_pool
from skyward.joblib_ext.batch import nested

if TYPE_CHECKING:  # nodes import this module too, and do without them
    from skyward.core.pool import Compute
    from skyward.joblib_ext.call import ParallelCall

__all__ = ["NAME", "SkywardBackend"]

NAME = "skyward"
"""What joblib calls the backend."""

_TASK = 5e-6  # seconds that a task costs in its slot besides running: a batch of any size takes some time
_SHORT = 0.005  # seconds of a batch that may be followed by one four times as large

_lock = threading.Lock()  # guards `SkywardBackend.parallel` of objects that several threads use

_Callback = Callable[[Any], object]
_Future = concurrent.futures.Future[Any]


class _RemoteOne(int):
    """One worker, and yet not the plain loop in the calling process.

    joblib takes ``n_jobs == 1`` for the latter, but who asks for all slots of a pool that has one wants that slot.
    """

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = int.__hash__


class SkywardBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """joblib backend that runs batches in the slots of a pool.

    Parameters
    ----------
    pool
        An open pool. None: the innermost that this thread has entered, else the one that was entered last.
    nesting_level, inner_max_num_threads
        As joblib gives them; the latter limits the BLAS and OpenMP threads of each task.
    **backend_kwargs
        ``initializer`` and ``initargs``: run once in each slot process before its first task.

    Notes
    -----
    Arrays of more than `max_nbytes` reach a node once and are memory maps there: read-only for ``mmap_mode="r"``,
    otherwise copy-on-write, since there is no memory that machines share to write into. A `numpy.memmap` of the
    caller's is the same file in tasks on this machine, and read-only in tasks elsewhere.

    Examples
    --------
    >>> from joblib import Parallel, delayed, parallel_config
    >>> with pool, parallel_config(backend=SkywardBackend(pool)):  # doctest: +SKIP
    ...     Parallel(n_jobs=-1)(delayed(pow)(i, 2) for i in range(10))
    """

    supports_retrieve_callback = True  # gives generators and timeouts too
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False
    default_n_jobs = 1

    _effective_batch_size: int  # of `AutoBatchingMixin`, as the next
    _smoothed_batch_duration: float

    def __init__(
        self,
        pool: Compute | None = None,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **backend_kwargs: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.backend_kwargs = backend_kwargs  # joblib before 1.5 does not keep them
        self.parallel: Any = None
        self._given = pool
        self._workers: ParallelCall | None = None
        self._successor: Any = None
        self.undo: Callable[[], object] | None = None
        self._took = threading.local()

    def __repr__(self) -> str:
        return f"<SkywardBackend of {self._given or 'the active pool'}>"

    def __reduce__(self) -> Any:
        """Without the pool, which never leaves its process."""
        return type(self), (None, self.nesting_level, self.inner_max_num_threads)

    # --- which pool ---

    @property
    def pool(self) -> Compute:
        """The pool that it uses.

        Raises
        ------
        PoolNotActive
            None was given and none is open.
        """
        return self._given or active_pool.current()

    def retire(self, successor: Any, undo: Callable[[], object]) -> None:
        """Stand in for another backend from now on, since a configuration of joblib outlives the pool.

        `undo` takes that configuration back, once it is the one on top in its thread; see `unwind`.
        """
        self._successor = successor
        self.undo = undo

    @staticmethod
    def unwind() -> None:
        """Take back the configurations of pools that are closed, in this thread and as far as they are on top."""
        while isinstance(backend := get_active_backend()[0], SkywardBackend) and backend.undo is not None:
            undo, backend.undo = backend.undo, None
            undo()

    def _stand_in(self) -> Any:
        """The backend to use instead of this one, if any."""
        if self._successor is not None:
            return self._successor
        if self._given is None and active_pool.on_node() and active_pool.find() is None:
            return nested(self.nesting_level or 0)  # a call inside a task, on its node
        return None

    # --- how many ---

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many tasks run at a time, by joblib's arithmetic: -1 is all slots, -2 all but one.

        Raises
        ------
        ValueError
            ``n_jobs`` is 0.
        PoolNotActive
            It counts the slots of a pool that is not open.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or n_jobs > 0:
            return 1 if n_jobs is None else int(n_jobs)
        if self._stand_in() is not None:
            return max(int(cpu_count()) + 1 + n_jobs, 1)
        count = max(self.pool.total_slots + 1 + n_jobs, 1)
        return _RemoteOne(count) if count == 1 and self.parallel is not None else count

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **backend_kwargs: Any,
    ) -> int:
        """Get ready for the calls of one ``Parallel``; called by joblib."""
        if (other := self._stand_in()) is not None:
            raise FallbackToBackend(other)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        pool = self.pool
        _ = pool.total_slots  # raises PoolNotActive with the reason that fits
        if parallel is not None and not self._serves(parallel):
            raise FallbackToBackend(self._of_its_own(parallel))
        from skyward.joblib_ext import call  # noqa: PLC0415 - a node, which never comes here, does without it

        usual = type(self).get_nested_backend is SkywardBackend.get_nested_backend
        level = (self.nesting_level or 0) + 1 if usual else None
        try:
            settings = call.Settings.read({**self.backend_kwargs, **backend_kwargs}, pool.dispatcher.named)
            self._workers = call.ParallelCall(pool, n_jobs, settings, self.inner_max_num_threads, level)
            return self.effective_n_jobs(n_jobs)
        except BaseException:
            self.terminate()
            raise

    def _serves(self, parallel: Any) -> bool:
        """Whether this object is that one's, and from now on if it is nobody's."""
        with _lock:
            if self.parallel is None:
                self.parallel = parallel
            return self.parallel is parallel

    def _of_its_own(self, parallel: Any) -> SkywardBackend:
        mine = type(self).__new__(type(self))
        mine.__dict__.update(vars(self), parallel=parallel, _workers=None, _took=threading.local())
        mine.reset_batch_stats()
        return mine

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """What calls inside a task use: the slot's own threads, and deeper down none."""
        return nested((self.nesting_level or 0) + 1), None

    # --- one call ---

    def start_call(self) -> None:
        """A call of the ``Parallel`` begins."""
        if self._workers is not None:
            _forget_what_failed(self.parallel)
            self._workers.start_call(self.parallel)

    def stop_call(self) -> None:
        """The call has ended."""
        if self._workers is not None:
            self._workers.stop_call()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Held while joblib hands over results. It looks for errors only while it expects results; others come here."""
        if getattr(self.parallel, "_aborting", False):
            self.parallel._raise_error_fast()  # noqa: SLF001
        yield

    def submit(self, func: Any, callback: _Callback | None = None) -> _Future:
        """Run a batch. Never raises, never blocks; the callback is called exactly once unless the call is aborted."""
        try:
            if self._workers is None:
                raise PoolNotActive("this Parallel call has ended")
            return self._workers.submit(func, callback)
        except BaseException as error:
            interrupt = not isinstance(error, Exception)
            if interrupt and threading.current_thread() is threading.main_thread():
                raise  # Ctrl-C in the thread that called Parallel, which handles it
            future: _Future = concurrent.futures.Future()
            future.set_exception(error)
        if callback is not None:
            callback(future)
        return future

    def apply_async(self, func: Any, callback: _Callback | None = None) -> _Future:
        """`submit`, as joblib before 1.5 calls it."""
        return self.submit(func, callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        """The results of a batch, in the delivery thread."""
        self._took.seconds = getattr(out, "seconds", None)
        try:
            return out.result()
        except concurrent.futures.CancelledError as error:
            if not out.cancelled():
                raise  # the task's own
            raise PoolNotActive("the pool was closed before this joblib call had ended") from error

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """Learn how long a batch ran; joblib's own figure includes the time that it waited for a slot."""
        seconds, self._took.seconds = getattr(self._took, "seconds", None), None
        super().batch_completed(batch_size, duration if seconds is None else seconds + batch_size * _TASK)

    def compute_batch_size(self) -> Any:
        """How many tasks go into the next batch: joblib's own answer, which doubles, and twice that while it is short.

        Each step takes a round trip, and twelve of them would be most of what a call of thousands of tiny tasks takes.
        """
        if self.parallel is None:  # the call has ended meanwhile, in another thread
            return self._effective_batch_size
        if 0 < self._smoothed_batch_duration < _SHORT:
            self._effective_batch_size *= 2
            self._smoothed_batch_duration *= 2
        return super().compute_batch_size()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the tasks of this call, also those that run; the pool goes on."""
        crew, self._workers = self._workers, None
        if crew is not None:
            crew.abort()
            self._workers = crew.renewed() if ensure_ready else None

    def terminate(self) -> None:
        """The ``Parallel`` needs no workers for now. The pool keeps its machines."""
        crew, self._workers = self._workers, None
        if crew is not None:
            crew.close()
        self.reset_batch_stats()
        self.parallel = None


def _forget_what_failed(parallel: Any) -> None:
    """Drop the batches that joblib had made of an earlier call's tasks and not sent when that failed."""
    ready = getattr(parallel, "_ready_batches", None)
    with contextlib.suppress(queue.Empty):
        while ready is not None:
            ready.get_nowait()


def _register() -> None:
    if NAME not in BACKENDS:  # a user may have a factory of that name already
        register_parallel_backend(NAME, SkywardBackend)


_register()

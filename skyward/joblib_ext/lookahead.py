"""How many batches of a ``Parallel`` call are out: as many as joblib sends, and more where slots would idle.

joblib counts the slots once, when a call begins, and afterwards takes one batch from the user's iterator whenever one
has ended: nodes that join later would get nothing. `Supply` takes as many more as joblib would have sent had they been
there, and lets joblib cut what is left by the slots that there are now, be they more or fewer. `wanted` says when so
few batches are out that slots wait for the way to their node and back.

joblib has no public way to do any of this. What is used here is there in joblib 1.3 to 1.6.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import threading
import time
import weakref
from numbers import Integral
from typing import Any

from joblib import parallel as joblib_parallel
from joblib._utils import eval_expr

from skyward.core.tasks.futures import TaskFuture

__all__ = ["Supply", "bring_back", "failed", "sent_at_once", "wanted"]

_log = logging.getLogger("skyward.joblib")

_DEFAULT_PRE_DISPATCH = "2 * n_jobs"
_BUSY = 0.97  # share of the slots that must work
_IDLE = 0.5  # below this share several batches more go out
_SEVERAL = 3
_DEEPEST = 64  # batches out for each slot
_BYTES = 64 << 20  # in all batches that are out, if all are as large as the last
_FAR = 0.02  # seconds that a batch spends on its way and in queues; more than they take on one machine


def sent_at_once(pre_dispatch: object, batch_size: object, jobs: int) -> int:
    """How many batches joblib sends when a call begins, as long as batches grow only later; 0 where jobs don't count.

    Parameters
    ----------
    pre_dispatch, batch_size
        As `Parallel` has them.
    jobs
        Tasks that run at a time.
    """
    if not isinstance(pre_dispatch, str) or pre_dispatch == "all":
        return 0
    tasks = int(eval_expr(pre_dispatch.replace("n_jobs", str(jobs))))
    size = batch_size if isinstance(batch_size, Integral) else 1
    rounds, rest = divmod(tasks, int(size) * jobs)  # joblib takes a batch for each job at a time
    return rounds * jobs + math.ceil(rest / max(rest // jobs, 1))


class Supply:
    """What keeps the slots of one call supplied with batches.

    Parameters
    ----------
    parallel
        Whose call it is; it has counted its slots already.
    jobs
        Tasks that may run at a time, as counted now.
    """

    def __init__(self, parallel: Any, jobs: int) -> None:
        self._parallel = weakref.ref(parallel)
        self._call = parallel._call_id  # noqa: SLF001
        self._sent_for = int(parallel._cached_effective_n_jobs)  # noqa: SLF001  the most slots that batches went out for
        self._jobs = self._sent_for
        self._begun = False
        self.count(jobs)

    def __repr__(self) -> str:
        return f"<Supply for {self._jobs} jobs>"

    def count(self, jobs: int) -> None:
        """So many tasks may run at a time from now on. From any thread, never blocks."""
        parallel = self._parallel()
        if parallel is None or parallel._call_id != self._call:  # noqa: SLF001
            return
        self._jobs = parallel._cached_effective_n_jobs = jobs  # noqa: SLF001
        if self._begun:
            self._catch_up_soon()

    def begin(self) -> None:
        """A batch goes out; the first one says that joblib is ready to be asked for more."""
        if not self._begun:
            self._begun = True
            self._catch_up_soon()

    def answered(self, callback: Any, more: int, delay: float) -> None:
        """A batch came back after `delay` seconds besides its running; `more` should go out than do.

        An explicit choice of `pre_dispatch` is the user's. Batches that grow by themselves soon are long enough, and
        grow less the more of them are out, so there are no more of them unless the way is long.
        """
        parallel = callback.parallel
        if parallel.pre_dispatch != _DEFAULT_PRE_DISPATCH or (parallel.batch_size == "auto" and delay <= _FAR):
            return
        for _ in range(more):
            _take_one(parallel, callback.parallel_call_id)

    def _catch_up_soon(self) -> None:
        """In a thread: it runs the user's iterator, which may be slow."""
        if self._jobs > self._sent_for:
            threading.Thread(target=self._catch_up, name="skyward-joblib-more", daemon=True).start()

    def _catch_up(self) -> None:
        """Send what joblib would have sent, had all these slots been there."""
        parallel = self._parallel()
        if parallel is None:
            return
        try:
            with parallel._lock:  # noqa: SLF001
                asked = parallel.pre_dispatch, parallel.batch_size
                more = sent_at_once(*asked, self._jobs) - sent_at_once(*asked, self._sent_for)
                self._sent_for = max(self._sent_for, self._jobs)
            for _ in range(more):
                if not _take_one(parallel, self._call):
                    return
        except BaseException as error:
            bring_back(parallel, self._call, error)


def wanted(slots: int, out: int, future: TaskFuture[Any], turnaround: float) -> int:
    """How many batches more than now should be out, when one of `out` has come back after `turnaround` seconds.

    joblib's two for each worker are too few where tasks are short against the way to their node and back: slots would
    idle. By Little's law, the slots that work on average are the batches that are out, times the running time, over the
    time between sending and answer; while that is less than the slots there are, one more goes out, and several where
    most of them idle: lazily, and only up to a bound of batches and of bytes. What is too much by then is no harm, for
    a node gives back what it has not begun (see `core.schedule`).
    """
    if future.seconds is None or out >= slots * _DEEPEST or out * future.size > _BYTES:
        return 0
    working = out * future.seconds / max(turnaround, 1e-6) / slots
    return 0 if working >= _BUSY else 1 if working >= _IDLE else _SEVERAL


def _take_one(parallel: Any, call: object) -> bool:
    """Let joblib take one more batch from the user's iterator, as it does itself when one has ended; False at its end.

    Parameters
    ----------
    parallel, call
        The `Parallel`, and which call of it is meant.
    """
    with parallel._lock:  # noqa: SLF001
        if parallel._call_id != call or parallel._original_iterator is None:  # noqa: SLF001
            return False
        parallel.dispatch_next()
        return True


def failed(error: BaseException) -> concurrent.futures.Future[Any]:
    """A future that has failed."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_exception(error)
    return future


def bring_back(parallel: Any, call: object, error: BaseException) -> None:
    """Let the thread that waits in ``Parallel`` raise an error that arose in one of ours.

    joblib has no public way to do so. This one is what it does itself with an iterator's exceptions.
    """
    try:
        if parallel._call_id != call:  # noqa: SLF001
            return  # the call has ended
        tracker = joblib_parallel.BatchCompletionCallBack(time.time(), 0, parallel)
        if getattr(parallel, "return_ordered", True):  # joblib 1.3 knows nothing else
            parallel._jobs.append(tracker)  # noqa: SLF001
        tracker(failed(error))
    except Exception:
        _log.exception("joblib's callback failed with %r, and its caller could not be told", error)

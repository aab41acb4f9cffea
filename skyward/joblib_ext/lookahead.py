"""How many batches of a ``Parallel`` call are out: as many as joblib sends, and more if slots would be idle.

joblib counts the slots once, when a call begins, and afterwards takes one batch from the user's iterator whenever one
has ended: nodes that join later would get nothing. `Supply` takes as many more as joblib would have sent had these
nodes been there, and makes joblib cut the rest into batches for the current number of slots. `wanted` detects when so
few batches are out that slots wait for the round trip to their node.
"""

from __future__ import annotations

import math
import threading
import weakref
from numbers import Integral
from typing import Any

from skyward.core.tasks.futures import TaskFuture
from skyward.joblib_ext.joblib_private import (
    call_of,
    counted_jobs,
    lock_of,
    pre_dispatched_tasks,
    raise_in_caller,
    set_counted_jobs,
    take_batch,
)

__all__ = ["Supply", "sent_at_once", "wanted"]

_DEFAULT_PRE_DISPATCH = "2 * n_jobs"
_BUSY = 0.97  # share of the slots that must be busy
_IDLE = 0.5  # below this share, several more batches go out
_SEVERAL = 3
_MAX_PER_SLOT = 64  # batches out
_MAX_BYTES = 64 << 20  # of all batches out, if all are as large as the last
_FAR = 0.02  # seconds that a batch spends in transit and in queues; more than within one machine


def sent_at_once(pre_dispatch: object, batch_size: object, jobs: int) -> int:
    """Return how many batches joblib sends when a call begins, before batches grow; 0 if independent of `jobs`.

    Parameters
    ----------
    pre_dispatch, batch_size
        Attributes of the `Parallel`.
    jobs
        How many tasks run at once.
    """
    if not isinstance(pre_dispatch, str) or pre_dispatch == "all":
        return 0
    tasks = pre_dispatched_tasks(pre_dispatch, jobs)
    size = batch_size if isinstance(batch_size, Integral) else 1
    rounds, rest = divmod(tasks, int(size) * jobs)  # joblib takes one batch for each job at a time
    return rounds * jobs + math.ceil(rest / max(rest // jobs, 1))


class Supply:
    """Keeps the slots of one call supplied with batches.

    Parameters
    ----------
    parallel
        Whose current call it is; it must have counted its slots already, see `joblib_private.counted_jobs`.
    jobs
        How many tasks may run at once, as counted now.
    """

    def __init__(self, parallel: Any, jobs: int) -> None:
        self._parallel = weakref.ref(parallel)
        self._call = call_of(parallel)
        self._sent_for = counted_jobs(parallel) or 0  # maximum number of jobs that batches were sent for
        self._jobs = self._sent_for
        self._begun = False
        self.count(jobs)

    def __repr__(self) -> str:
        return f"<Supply for {self._jobs} jobs>"

    def count(self, jobs: int) -> None:
        """Set how many tasks may run at once from now on. Callable from any thread, never blocks."""
        parallel = self._parallel()
        if parallel is None or call_of(parallel) != self._call:
            return
        self._jobs = jobs
        set_counted_jobs(parallel, jobs)
        if self._begun:
            self._catch_up_soon()

    def begin(self) -> None:
        """Note that a batch goes out; from the first one on, joblib can be asked for more."""
        if not self._begun:
            self._begun = True
            self._catch_up_soon()

    def answered(self, callback: Any, more: int, delay: float) -> None:
        """Send more batches after one has come back, unless the user or joblib has a better plan.

        An explicit `pre_dispatch` is respected. Batches of automatic size are soon long enough, and grow less the more
        of them are out, so no more are sent unless the round trip is long.

        Parameters
        ----------
        callback
            joblib's, of the batch.
        more
            How many more batches should be out.
        delay
            Seconds between sending the batch and its answer, without its running time.
        """
        parallel = callback.parallel
        if parallel.pre_dispatch != _DEFAULT_PRE_DISPATCH or (parallel.batch_size == "auto" and delay <= _FAR):
            return
        for _ in range(more):
            take_batch(parallel, callback.parallel_call_id)

    def _catch_up_soon(self) -> None:
        """Catch up in a thread, since that runs the user's iterator, which may be slow."""
        if self._jobs > self._sent_for:
            threading.Thread(target=self._catch_up, name="skyward-joblib-more", daemon=True).start()

    def _catch_up(self) -> None:
        """Send what joblib would have sent had all these slots been there from the start."""
        parallel = self._parallel()
        if parallel is None:
            return
        try:
            with lock_of(parallel):
                asked = parallel.pre_dispatch, parallel.batch_size
                more = sent_at_once(*asked, self._jobs) - sent_at_once(*asked, self._sent_for)
                self._sent_for = max(self._sent_for, self._jobs)
            for _ in range(more):
                if not take_batch(parallel, self._call):
                    return
        except BaseException as error:
            raise_in_caller(parallel, self._call, error)


def wanted(slots: int, out: int, future: TaskFuture[Any], turnaround: float) -> int:
    """Return how many more batches should be out, after one of them has come back.

    joblib's two batches per worker are too few if tasks are short relative to the round trip to their node: slots would
    be idle. By Little's law, the average number of busy slots is the number of batches out, times the running time,
    divided by the time between sending and answer. While that is less than the number of slots, one more batch goes
    out, or several if most slots are idle, up to a maximum number of batches and bytes. Surplus batches do no harm,
    since a node returns what it has not begun (see `core.tasks.schedule`).

    Parameters
    ----------
    slots
        How many tasks can run at once.
    out
        How many batches were out before this one came back.
    future
        The batch.
    turnaround
        Seconds between sending it and its answer.
    """
    if future.seconds is None or out >= slots * _MAX_PER_SLOT or out * future.size > _MAX_BYTES:
        return 0
    working = out * future.seconds / max(turnaround, 1e-6) / slots
    return 0 if working >= _BUSY else 1 if working >= _IDLE else _SEVERAL

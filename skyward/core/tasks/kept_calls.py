"""Calls whose results are kept, such as those of functions that `joblib.Memory` caches: looked up before they are sent.

A result that is kept never makes a task. Of calls that are equal, one at a time is computed; the others wait for it and
then find its result. If it fails, or its node dies, the next one is computed. What is kept, and where, is known to a
`KeptCall`; front ends say in `KINDS` which functions have any.

A call that waits is a job already: it was pickled when it was submitted, so that it may not be computed from arguments
that have changed since.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from skyward.core.interrupts import INTERRUPT_SECONDS
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import Job, KeptCall, TaskOptions
from skyward.core.tasks.schedule_events import Verdict

__all__ = ["KINDS", "KeptCalls", "Kind", "MakeJob", "done", "failed", "is_kept"]


class Kind(NamedTuple):
    """Functions of one class, some of whose results are kept."""

    keeps: Callable[[Any], bool]
    """Whether a function's results are kept."""
    make: Callable[[Any, Sequence[Any], Mapping[str, Any]], KeptCall]
    """Makes a `KeptCall` of such a function and arguments. May raise anything; then that is the outcome of the call."""


KINDS: dict[type, Kind] = {}
"""Classes of functions that front ends have registered."""


def is_kept(function: object) -> bool:
    """Whether the results of a function are kept."""
    kind = KINDS.get(type(function))
    return kind is not None and kind.keeps(function)


MakeJob = Callable[[Callable[..., Any], Sequence[Any], Mapping[str, Any], TaskOptions], Job]
"""Makes a job of a call. May raise anything."""


class KeptCalls:
    """The kept calls of one pool. Except where noted, for any thread.

    Parameters
    ----------
    make
        Makes a job of a call.
    send
        Takes a job to be run.
    drop
        Releases what a job holds that is not going to be run.
    deliver
        Takes a job to be completed in the delivery thread of its group, if `look` says so.
    """

    def __init__(
        self,
        make: MakeJob,
        send: Callable[[Job], object],
        drop: Callable[[Job], object],
        deliver: Callable[[Job], object],
    ) -> None:
        self._make, self._send, self._drop, self._deliver = make, send, drop, deliver
        self._changed = threading.Condition(threading.Lock())  # guards what follows; notified when _open gets empty
        self._open: dict[Hashable, deque[Job | threading.Event]] = {}  # those looked up or computed -> who waits
        self._owners: dict[Hashable, Job] = {}  # the job that computes it, if one does
        self._waiting: dict[int, Job] = {}  # by task

    def __repr__(self) -> str:
        return f"<KeptCalls, {len(self._open)} open, {len(self._waiting)} wait>"

    @property
    def waiting(self) -> int:
        """How many jobs wait for an equal one."""
        return len(self._waiting)

    def call(
        self,
        kept: KeptCall,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: TaskOptions,
        first: int = -1,
    ) -> TaskFuture[Any]:
        """Return a future of a call: it is done if the result was found. Errors are reported by the future.

        Parameters
        ----------
        kept
            What is known of the call.
        function, args, kwargs
            What to run if the result is not found; `kept` is given what this returns.
        options
            How to run it.
        first
            See `Job`.
        """

        def made() -> Job:
            kept.detach()  # it may raise what the user's __repr__ does, so there is no job yet
            job = self._make(function, args, kwargs, options)
            job.kept, job.first = kept, first
            return job

        job: Job | None = None
        while not self._enter(kept.key, job):
            if job is not None:
                return job.future  # it waits
            try:
                job = made()
            except Exception as error:
                return failed(error)
        return self._first(kept, job, made)

    def _first(self, kept: KeptCall, job: Job | None, made: Callable[[], Job]) -> TaskFuture[Any]:
        try:
            found = kept.find()
            if found is None:
                job = job or made()
                self._run(kept.key, job)
                return job.future
        except BaseException as error:
            self.leave(kept.key)
            if not isinstance(error, Exception):
                raise
            if job is None:
                return failed(error)
            job.error = error
        else:
            self.leave(kept.key)
            if job is None:
                return done(found[0])
            job.found = found
        return self._end(job)

    def _run(self, key: Hashable, job: Job) -> None:
        with self._changed:
            self._owners[key] = job
        self._send(job)

    def _end(self, job: Job) -> TaskFuture[Any]:
        job.kept = None
        self._drop(job)
        self._deliver(job)
        return job.future

    def _enter(self, key: Hashable, job: Job | None) -> bool:
        """Make a call the one of its key that is computed; if there is one, let its job wait, if it has been made."""
        with self._changed:
            waiting = self._open.get(key)
            if waiting is None:
                self._open[key] = deque()
                return True
            if job is not None:
                waiting.append(job)
                self._waiting[job.id] = job
            return False

    def leave(self, key: Hashable) -> None:
        """Give the next one its turn."""
        with self._changed:
            waiting = self._open[key]
            self._owners.pop(key, None)
            if not waiting:
                del self._open[key]
                if not self._open:
                    self._changed.notify_all()
                return
            job = waiting.popleft()
            if isinstance(job, threading.Event):
                job.set()
                return
            del self._waiting[job.id]
            job.looks = True
        self._deliver(job)

    # --- calls within tasks, which have no job ---

    def begin(self, key: Hashable) -> threading.Event | None:
        """Begin to compute a call, until `leave`; if an equal one is under way, return what tells us of our turn."""
        with self._changed:
            waiting = self._open.get(key)
            if waiting is None:
                self._open[key] = deque()
                return None
            turn = threading.Event()
            waiting.append(turn)
            return turn

    def give_up(self, key: Hashable, turn: threading.Event) -> bool:
        """Stop waiting, and return True; False if it is our turn already."""
        with self._changed:
            if turn.is_set():
                return False
            self._open[key].remove(turn)
            return True

    def is_queued(self, key: Hashable) -> bool:
        """Whether a call is to be computed by a job that, as far as its node has reported, has not begun."""
        with self._changed:
            job = self._owners.get(key)
            return job is not None and not job.future.began

    def look(self, job: Job) -> bool:
        """Whether a job is to be completed; one that has waited is run unless it is found. In a delivery thread."""
        kept = job.kept
        if not job.looks or kept is None:
            return True
        job.looks = False
        if job.future.cancelled():
            job.verdict = Verdict.CANCELLED
        else:
            try:
                job.found = kept.find()
            except BaseException as error:
                job.error = error
            if job.found is None and job.error is None:
                self._run(kept.key, job)
                return False
        job.kept = None
        self.leave(kept.key)
        self._drop(job)
        return True

    def keep(self, job: Job, result: Any) -> Any:
        """Keep the result of a job, and return what the caller gets. In a delivery thread."""
        return result if job.kept is None else job.kept.keep(result, job.future.seconds or 0.0)

    def ended(self, job: Job) -> None:
        """Note that a job has ended, and its result, if it has one, is kept. In a delivery thread."""
        kept, job.kept = job.kept, None
        if kept is not None:
            self.leave(kept.key)

    def withdraw(self, task: int) -> None:
        """Cancel a job if it waits."""
        with self._changed:
            job = self._waiting.pop(task, None)
            if job is None or job.kept is None:
                return
            self._open[job.kept.key].remove(job)
        job.verdict = Verdict.CANCELLED
        self._end(job)

    def withdraw_all(self) -> None:
        """Cancel all jobs that wait."""
        for task in list(self._waiting):
            self.withdraw(task)

    def wait(self) -> None:
        """Wait until every call has ended and its result is kept."""
        with self._changed:
            while self._open:
                self._changed.wait(INTERRUPT_SECONDS)


def done(result: Any) -> TaskFuture[Any]:
    """Return a future that has a result."""
    future: TaskFuture[Any] = TaskFuture(_no_task, 0)
    future.set_result(result)
    return future


def failed(error: BaseException) -> TaskFuture[Any]:
    """Return a future that has failed."""
    future: TaskFuture[Any] = TaskFuture(_no_task, 0)
    future.set_exception(error)
    return future


def _no_task(_: int) -> None:
    """There is nothing to cancel."""

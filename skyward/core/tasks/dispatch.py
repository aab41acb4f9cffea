"""Takes calls from any thread, and hands them to the I/O thread, where runner.py runs them on nodes.

Calls are pickled in the caller's thread (job_maker.py), and futures are completed in delivery threads (completion.py).
Nothing here knows about joblib, machines, or where nodes come from.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from skyward.core.blobs.array_cache import ArrayCache
from skyward.core.blobs.snapshots import MakeFile, Snapshots
from skyward.core.code.local_code import CodeSettings, LocalCode
from skyward.core.errors import PoolNotActive
from skyward.core.events import Events, TaskEnded, TasksQueued
from skyward.core.ioloop import IOThread
from skyward.core.payload.memory_maps import Named
from skyward.core.payload.shared_file import SharedFile
from skyward.core.payload.surroundings import Surroundings
from skyward.core.tasks import schedule_events
from skyward.core.tasks.answers import Answers
from skyward.core.tasks.completion import Completion
from skyward.core.tasks.delivery import start_thread
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.job_maker import JobMaker
from skyward.core.tasks.jobs import Job, Keeper, KeptCall, TaskOptions
from skyward.core.tasks.kept_calls import KINDS, KeptCalls, failed, is_kept
from skyward.core.tasks.late_packages import Supplier
from skyward.core.tasks.listening_sockets import Listeners
from skyward.core.tasks.pool_context import PoolContext
from skyward.core.tasks.runner import TaskRunner

__all__ = ["Dispatcher"]

_T = TypeVar("_T")

_DEFAULT = TaskOptions()


class Dispatcher:
    """Runs calls on the nodes of one pool.

    Parameters
    ----------
    io
        The thread that owns everything except `submit`.
    events
        Where tasks are reported.
    isolated, timeout, attempts
        The pool's defaults for `TaskOptions`.
    shares, make_file
        Whether some nodes are on this machine, and map large buffers instead of receiving them; see `Snapshots`.
    named
        Which memory maps of files are sent as the file's name, to be opened by the tasks: ``"all"`` if all nodes are on
        this machine.
    surroundings
        What tasks find on this machine's nodes as it is here; None for nothing.
    local_code
        How the user's own code gets to nodes; None if nothing of that kind is needed.
    name
        Prefix of the names of threads.
    roll_call
        Seconds between two times that nodes are asked which tasks they have.
    answers
        Reads answers of nodes; None to unpickle them.
    listeners
        Where byte streams of slots may lead.
    supplier
        Knows the packages that nodes can get when a task turns out to need them; None: they get none.
    start_thread
        Starts the threads that complete futures; see `Delivery`.
    store
        See `Completion`.
    """

    runner: TaskRunner
    """Its half in the I/O thread."""
    kept: KeptCalls
    """Calls whose results are kept."""
    context: PoolContext
    """What front ends know of the pool."""
    used = False
    """Whether a task was ever submitted."""
    _woken = False
    _closed: str | None = None

    def __init__(
        self,
        io: IOThread,
        events: Events,
        *,
        isolated: bool,
        timeout: float | None,
        attempts: int,
        shares: bool = False,
        make_file: MakeFile = SharedFile,
        named: Named = "none",
        surroundings: Surroundings | None = None,
        local_code: CodeSettings | None = None,
        name: str = "skyward",
        roll_call: float = 5.0,
        answers: Answers | None = None,
        listeners: Listeners | None = None,
        supplier: Supplier | None = None,
        start_thread: Callable[[Callable[[], None], str], threading.Thread] = start_thread,
        store: Callable[[Sequence[Keeper]], None] | None = None,
    ) -> None:
        self.surroundings, self.named = surroundings or Surroundings(shared=False), named
        self._io, self._events = io, events
        self._snapshots = Snapshots(shares, make_file)
        listeners, answers = listeners or Listeners(), answers or Answers()
        self.code = None if local_code is None else LocalCode(self._snapshots, local_code)
        self._maker = JobMaker(self._snapshots, self.surroundings, named, listeners, self.code, timeout)
        thread = f"{name}-delivery"
        self._completion = Completion(events, answers, self.surroundings, thread, start_thread, store)
        parts = events, self._snapshots, self._completion, listeners
        self.runner = TaskRunner(*parts, isolated=isolated, attempts=attempts, roll_call=roll_call, supplier=supplier)
        self.kept = self._completion.kept = KeptCalls(self._make, self._send, self._drop, self._completion.deliver)
        self.context = self._maker.context = PoolContext(named == "all", answers, self.kept)
        self._ids, self._pid = itertools.count(1), os.getpid()
        self._on_cancel = self._cancel  # one bound method for all futures
        self._inbox: deque[schedule_events.Event | Job] = deque()

    def __repr__(self) -> str:
        return f"<Dispatcher {len(self._inbox)} in the inbox; {self.runner}>"

    # --- any thread ---

    def submit(
        self, function: Callable[..., _T], /, *args: Any, options: TaskOptions = _DEFAULT, **kwargs: Any
    ) -> TaskFuture[_T]:
        """`call`, for functions that have no argument named `options`.

        Parameters
        ----------
        function, *args, **kwargs
            What to call.
        options
            How to run it.
        """
        return self.call(function, args, kwargs, options)

    def call(
        self,
        function: Callable[..., _T],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: TaskOptions = _DEFAULT,
        first: int = -1,
    ) -> TaskFuture[_T]:
        """Run ``function(*args, **kwargs)`` on a node. Never blocks.

        Parameters
        ----------
        function, args, kwargs
            What to call.
        options
            How to run it.
        first
            See `Job`.

        Raises
        ------
        PoolNotActive
            The pool is closed, or belongs to another process. All other errors are reported by the future.
        """
        self._check_open()
        if type(function) in KINDS and options.node is None and is_kept(function):
            try:
                kept = KINDS[type(function)].make(function, args, kwargs)
            except Exception as error:
                return failed(error)
            return self.kept.call(kept, kept.function, args, kwargs, options, first)
        task = next(self._ids)
        future: TaskFuture[_T] = TaskFuture(self._on_cancel, task)
        try:
            if self.code is not None and options.group is None and not self.unfinished:
                self.code.now(look=True)
            job = self._maker.make(task, future, function, args, kwargs, options)
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        job.first = first
        self._post(job)
        self._events.emit(TasksQueued(options.count, job.label))
        return future

    def call_kept(
        self,
        kept: KeptCall,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: TaskOptions = _DEFAULT,
        first: int = -1,
    ) -> TaskFuture[Any]:
        """Return the result of a call if it is kept; otherwise run it, unless an equal one is running, and keep it.

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

        Raises
        ------
        PoolNotActive
            As for `call`.
        """
        self._check_open()
        return self.kept.call(kept, function, args, kwargs, options, first)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise PoolNotActive(self._closed)
        if os.getpid() != self._pid:
            raise PoolNotActive("this pool belongs to the process that opened it, not to a fork of it: open one here")
        self.used = True

    def _make(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: TaskOptions
    ) -> Job:
        """Make a job that may have to wait."""
        task = next(self._ids)
        job = self._maker.make(task, TaskFuture(self._on_cancel, task), function, args, kwargs, options)
        self._events.emit(TasksQueued(options.count, job.label))
        return job

    def _send(self, job: Job) -> None:
        self._post(job)
        if job.future.cancelled():  # while it waited; the runner did not know it yet
            self._cancel(job.id)

    def _drop(self, job: Job) -> None:
        job.buffers = []
        self._snapshots.release(job.blobs.values())

    @property
    def unfinished(self) -> int:
        """The approximate number of tasks that have not settled."""
        return len(self.runner.jobs) + len(self._inbox) + self.kept.waiting

    def arrays(self, limit: int | None) -> ArrayCache:
        """Make an array cache for a `TaskGroup` with that limit."""
        return ArrayCache(self._snapshots, partial(self.runner.schedule.at_a_time, limit))

    def shut(self, why: str) -> None:
        """Refuse new tasks from now on."""
        self._closed = why

    def _cancel(self, task: int) -> None:
        self._post(schedule_events.Cancelled(task))

    def _post(self, item: schedule_events.Event | Job) -> None:
        self._inbox.append(item)
        if not self._woken:
            self._woken = True
            try:
                self._io.post(self._take_inbox)
            except RuntimeError:  # the loop has ended, and close() may already have emptied the inbox
                self._woken = False
                self._drop_inbox()

    def _drop_inbox(self) -> None:
        """Cancel what no loop will take; an exception in a callback does not keep the others from being cancelled."""
        problem: BaseException | None = None  # sys.exit() in a callback, or Ctrl-C during one
        while self._inbox:
            with contextlib.suppress(IndexError):  # another thread was faster
                item = self._inbox.popleft()
                if isinstance(item, Job):
                    try:
                        concurrent.futures.Future.cancel(item.future)
                    except BaseException as error:
                        problem = problem or error
                    item.future.set_running_or_notify_cancel()
                    self._events.emit(TaskEnded(item.options.count, 0.0, False, True, item.node, label=item.label))
        if problem is not None:
            raise problem

    # --- I/O thread ---

    def _take_inbox(self) -> None:
        self._woken = False  # before taking anything, so that items appended from now on wake us again
        while self._inbox:
            item = self._inbox.popleft()
            try:
                if isinstance(item, Job):
                    self.runner.submitted(item)
                else:
                    if isinstance(item, schedule_events.Cancelled):
                        self.kept.withdraw(item.task)
                    self.runner.handle(item)
            except Exception:
                self._io.post(self._take_inbox)  # the other items have their turn nevertheless
                raise

    def cancel_all(self) -> None:
        """Cancel every task."""
        self._take_inbox()
        self.kept.withdraw_all()
        for task in list(self.runner.jobs):  # not through the futures, whose callbacks are other people's code
            self.runner.handle(schedule_events.Cancelled(task))

    def withdraw_all(self) -> None:
        """Cancel every task that has not begun."""
        self._take_inbox()
        self.kept.withdraw_all()
        for task in list(self.runner.jobs):
            self.runner.handle(schedule_events.Withdrawn(task))

    def close(self) -> None:
        """Settle the remaining tasks and end the delivery threads, after the loop has ended; nobody is left waiting."""
        self._inbox.extend(self.runner.jobs.values())  # submitted by another thread while the nodes were being released
        self.runner.jobs.clear()
        self._woken = False  # the loop may have ended before it took the inbox; from now on posting notices that
        try:
            self.kept.withdraw_all()
            self._drop_inbox()
        finally:
            self._completion.close()
            self._snapshots.clear()
            self.context.at_end.close()

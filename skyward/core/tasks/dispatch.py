"""Runs calls on nodes: takes them from any thread, and carries out in the I/O thread what `Schedule` commands.

Calls are pickled in the caller's thread (job_maker.py), and futures are completed in delivery threads (completion.py).
The dispatcher knows nothing about joblib, machines, or where nodes come from.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

from skyward.core.blobs.array_cache import ArrayCache
from skyward.core.blobs.distributor import ABOUT_BLOBS, Distributor
from skyward.core.blobs.snapshots import Snapshots
from skyward.core.errors import PayloadError, PoolNotActive, ProtocolError
from skyward.core.events import Events, Note, TasksQueued
from skyward.core.ioloop import IOThread
from skyward.core.nodes.session import Session
from skyward.core.payload.memory_maps import Named
from skyward.core.payload.shared_file import remove
from skyward.core.payload.surroundings import Surroundings
from skyward.core.protocol import messages
from skyward.core.protocol.wire import Filled
from skyward.core.tasks import schedule_events
from skyward.core.tasks.answers import Answers, take_files
from skyward.core.tasks.completion import Completion
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.job_maker import JobMaker
from skyward.core.tasks.jobs import Job, TaskOptions
from skyward.core.tasks.listening_sockets import Listeners
from skyward.core.tasks.output_lines import OutputLines
from skyward.core.tasks.roll_caller import RollCaller
from skyward.core.tasks.schedule import Schedule
from skyward.core.tasks.schedule_events import Outcome
from skyward.core.tasks.streams import ABOUT_STREAMS, Streams

__all__ = ["Dispatcher"]

_log = logging.getLogger("skyward.dispatch")

_T = TypeVar("_T")

_OVERHEAD = 0.0005  # seconds that a node takes to bring a task to a slot, in addition to the round trip
_TICK = 0.1  # seconds from `StartTimer` to `Tick`
_DEFAULT = TaskOptions()
_OUTCOMES = {
    messages.Failure.CRASHED.value: Outcome.CRASHED,
    messages.Failure.REFUSED.value: Outcome.REFUSED,
    messages.Failure.SHARED_CRASH.value: Outcome.SHARED_CRASH,
    messages.Failure.CANCELLED.value: Outcome.STOPPED,
}


@dataclass(slots=True, eq=False)
class _Node:
    session: Session
    streams: Streams
    output: OutputLines
    newest: int = 0  # highest number of a task that was sent there
    recalled: int = 0  # number of tasks that it was asked to return
    trouble: str = ""  # why the last failed run there failed


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
    shares
        Whether some nodes are on this machine, and map large buffers instead of receiving them.
    named
        Which memory maps of files are sent as the file's name, to be opened by the tasks: ``"all"`` if all nodes are on
        this machine.
    surroundings
        What tasks find on this machine's nodes as it is here; None for nothing.
    name
        Prefix of the names of threads.
    roll_call
        Seconds between two times that nodes are asked which tasks they have.
    answers
        Reads answers of nodes; None to unpickle them.
    listeners
        Where byte streams of slots may lead.
    """

    def __init__(
        self,
        io: IOThread,
        events: Events,
        *,
        isolated: bool,
        timeout: float | None,
        attempts: int,
        shares: bool = False,
        named: Named = "none",
        surroundings: Surroundings | None = None,
        name: str = "skyward",
        roll_call: float = 5.0,
        answers: Answers | None = None,
        listeners: Listeners | None = None,
    ) -> None:
        self.surroundings = surroundings or Surroundings(shared=False)
        self.named: Named = named
        self.used = False
        """Whether a task was ever submitted."""
        self._io = io
        self._events = events
        self._isolated, self._attempts = isolated, attempts
        self._listeners = listeners or Listeners()
        self._snapshots = Snapshots(shares)
        self._maker = JobMaker(self._snapshots, self.surroundings, named, self._listeners, timeout)
        self._schedule = Schedule()
        self._jobs: dict[int, Job] = {}
        self._nodes: dict[str, _Node] = {}
        self._distributor = Distributor()
        self._roll_caller = RollCaller(roll_call, self._held)
        self._completion = Completion(events, answers or Answers(), self.surroundings, f"{name}-delivery")
        self._ids = itertools.count(1)
        self._inbox: deque[schedule_events.Event | Job] = deque()
        self._woken = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._on_cancel = self._cancel  # one bound method for all futures
        self._pid = os.getpid()
        self._closed: str | None = None

    def __repr__(self) -> str:
        return f"<Dispatcher {len(self._jobs)} jobs, {len(self._inbox)} in the inbox; {self._schedule}>"

    # --- any thread ---

    def submit(
        self, function: Callable[..., _T], /, *args: Any, options: TaskOptions = _DEFAULT, **kwargs: Any
    ) -> TaskFuture[_T]:
        """`call`, for functions that have no argument named `options`."""
        return self.call(function, args, kwargs, options)

    def call(
        self,
        function: Callable[..., _T],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: TaskOptions = _DEFAULT,
    ) -> TaskFuture[_T]:
        """Run ``function(*args, **kwargs)`` on a node. Never blocks.

        Parameters
        ----------
        function, args, kwargs
            What to call.
        options
            How to run it.

        Raises
        ------
        PoolNotActive
            The pool is closed, or belongs to another process. All other errors are reported by the future.
        """
        if self._closed is not None:
            raise PoolNotActive(self._closed)
        if os.getpid() != self._pid:
            raise PoolNotActive("this pool belongs to the process that opened it, not to a fork of it: open one here")
        self.used = True
        task = next(self._ids)
        future: TaskFuture[_T] = TaskFuture(self._on_cancel, task)
        try:
            job = self._maker.make(task, future, function, args, kwargs, options)
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        self._post(job)
        self._events.emit(TasksQueued(options.count))
        return future

    @property
    def unfinished(self) -> int:
        """The approximate number of tasks that have not settled."""
        return len(self._jobs) + len(self._inbox)

    def arrays(self, limit: int | None) -> ArrayCache:
        """Make an array cache for a `TaskGroup` with that limit."""
        return ArrayCache(self._snapshots, partial(self._schedule.at_a_time, limit))

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
        """Cancel what no loop is going to take any more."""
        while self._inbox:
            with contextlib.suppress(IndexError):  # another thread was faster
                item = self._inbox.popleft()
                if isinstance(item, Job):
                    concurrent.futures.Future.cancel(item.future)
                    item.future.set_running_or_notify_cancel()

    # --- I/O thread: tasks ---

    def _take_inbox(self) -> None:
        self._woken = False  # before taking anything, so that items appended from now on wake us again
        while self._inbox:
            item = self._inbox.popleft()
            try:
                self._handle(self._submitted(item) if isinstance(item, Job) else item)
            except Exception:
                self._io.post(self._take_inbox)  # the other items have their turn nevertheless
                raise

    def _submitted(self, job: Job) -> schedule_events.Submitted:
        self._jobs[job.id] = job.lane.out[job.id] = job
        self._idle.clear()
        attempts = self._attempts if job.options.attempts is None else job.options.attempts
        return schedule_events.Submitted(job.id, id(job.group), job.group.limit, job.options.node, attempts)

    def _handle(self, event: schedule_events.Event) -> None:
        """Carry out what follows from an event; a command that fails does not affect those after it."""
        problem: Exception | None = None
        for command in self._schedule.handle(event):
            try:
                self._COMMANDS[type(command)](self, command)
            except Exception as error:
                problem = problem or error
        if problem is not None:
            raise problem

    def _run(self, command: schedule_events.Run) -> None:
        node, job = self._nodes[command.node], self._jobs[command.task]
        try:
            self._send(node, job, command.alone)
        except Exception as error:
            self._not_sent(command.node, job, error)

    def _send(self, node: _Node, job: Job, alone: bool) -> None:
        if job.node:
            job.future.began, job.began = False, 0.0  # it is retried
        job.node, job.is_here = node.session.node, node.session.shares
        node.newest = max(node.newest, job.id)
        buffers = job.buffers
        if job.blobs:
            self._distributor.use(job.node, job.id, {name: buffers[index + 1] for index, name in job.blobs.items()})
            buffers = [buffer for index, buffer in enumerate(buffers) if index - 1 not in job.blobs]
        isolated = self._isolated if job.options.isolated is None else job.options.isolated
        message = messages.Run(job.id, isolated or alone, job.timeout, job.options.threads, job.blobs, job.authkey)
        job.number = node.session.send(message, buffers)

    def _not_sent(self, name: str, job: Job, error: Exception) -> None:
        """Fail a task that can't be sent, to whatever node."""
        _log.info("task %d can't be sent to %s", job.id, name, exc_info=error)
        job.error = PayloadError(f"{job.label} (task {job.id}) can't be sent to {name}: {error}")
        job.error.__cause__ = error
        self._distributor.release(name, job.id)
        self._handle(schedule_events.Finished(job.id, name, Outcome.ANSWERED))

    def _stop(self, command: schedule_events.Stop) -> None:
        self._nodes[command.node].session.send(messages.Cancel(command.task))

    def _withdraw(self, command: schedule_events.Withdraw) -> None:
        self._jobs[command.task].withdrawn = True
        self._nodes[command.node].session.send(messages.Cancel(command.task, running=False))

    def _recall(self, command: schedule_events.Recall) -> None:
        """Ask for tasks, except those better left there: sending them elsewhere would take a round trip."""
        node = self._nodes[command.node]
        node.recalled = command.limit
        node.session.send(messages.Recall(command.limit, node.session.round_trip or 0.0))

    def _expel(self, command: schedule_events.Expel) -> None:
        node = self._nodes[command.node]
        reason = f"taken out, since {command.failures} tasks in a row failed there; the last: {node.trouble}"
        node.session.abandon(reason, barren=True)

    def _start_timer(self, _: schedule_events.StartTimer) -> None:
        asyncio.get_running_loop().call_later(_TICK, self._handle, schedule_events.Tick())

    def _settle(self, command: schedule_events.Settle) -> None:
        job = self._jobs.pop(command.task)
        del job.lane.out[job.id]
        job.verdict = command.verdict
        job.buffers = []
        try:
            self._snapshots.release(job.blobs.values())
        finally:
            if not self._jobs:
                self._idle.set()
            self._completion.settled(job)

    _COMMANDS: ClassVar[dict[type[Any], Callable[[Dispatcher, Any], None]]] = {
        schedule_events.Run: _run,
        schedule_events.Settle: _settle,
        schedule_events.Stop: _stop,
        schedule_events.Withdraw: _withdraw,
        schedule_events.Recall: _recall,
        schedule_events.Expel: _expel,
        schedule_events.StartTimer: _start_timer,
    }

    # --- I/O thread: messages of nodes ---

    def received(self, session: Session, message: messages.Message, buffers: list[Filled]) -> None:
        """Handle a message of a node; called by its session."""
        kind = type(message)
        if kind in ABOUT_BLOBS:
            self._distributor.received(session, message)
        elif (node := self._nodes.get(session.node)) is not None:
            self._MESSAGES[kind](self, node, message, buffers)
        elif isinstance(message, messages.Done) and session.shares:
            remove(message.files.values())

    def _began(self, node: _Node, message: messages.Began, _: list[Filled]) -> None:
        now = time.monotonic()
        for task in message.tasks:
            if (job := self._jobs.get(task)) is not None and job.node == node.session.node:
                job.future.began = True
                job.began = now
        self._handle(schedule_events.Began(node.session.node, message.tasks))

    def _returned(self, node: _Node, message: messages.Returned, _: list[Filled]) -> None:
        tasks = message.tasks
        if len(tasks) > node.recalled or any(task > node.newest for task in tasks):
            raise ProtocolError(f"tasks {tasks!r:.100} are returned, which were not asked for")
        node.recalled = 0
        for task in tasks:
            self._distributor.release(node.session.node, task)
        self._handle(schedule_events.Returned(node.session.node, tasks))

    def _finished(self, node: _Node, message: messages.Done | messages.Failed, buffers: list[Filled]) -> None:
        session = node.session
        job = self._jobs.get(message.task)
        mine = job if job is not None and job.node == session.node else None
        _check_answer(message, node, job)
        if isinstance(message, messages.Done) and message.files:
            message, buffers = take_files(session, message, buffers)
        if mine is not None:
            mine.answer = (message, buffers)
            if mine.blobs and mine.group.arrays is not None:
                mine.group.arrays.ran(message.seconds)
        self._distributor.release(session.node, message.task)
        seconds, outcome = message.seconds, Outcome.ANSWERED
        measured: float | None = seconds
        if isinstance(message, messages.Failed):
            measured = None
            outcome = _OUTCOMES.get(message.reason, Outcome.ANSWERED)
            node.trouble = message.detail
        overhead = None if session.round_trip is None else session.round_trip + _OVERHEAD
        self._handle(schedule_events.Finished(message.task, session.node, outcome, measured, overhead))

    def _missing(self, node: _Node, message: messages.Missing, _: list[Filled]) -> None:
        """Retry tasks that a node should have and does not have, as after a crash."""
        for task in self._roll_caller.lost(node.session, message.tasks):
            text = f"{node.session.node} has lost {self._jobs[task].label} (task {task}), which was sent to it"
            _log.warning("%s", text)
            self._events.emit(Note(f"{text}: this counts as if its worker had died", warning=True))
            self._finished(node, messages.Failed(task, 0.0, messages.Failure.CRASHED.value, "the node lost it"), [])

    def _held(self, session: Session) -> dict[int, int]:
        """Return the tasks that a node should have, for `RollCaller`: a question must not overtake the task itself."""
        arrived = session.acknowledged
        jobs = [self._jobs[task] for task in self._schedule.out(session.node)]
        return {job.id: job.number for job in jobs if job.number <= arrived}

    def _printed(self, node: _Node, message: messages.Output, buffers: list[Filled]) -> None:
        node.output.received(message, buffers)

    def _streamed(
        self,
        node: _Node,
        message: messages.StreamOpen | messages.StreamData | messages.StreamClose,
        buffers: list[Filled],
    ) -> None:
        node.streams.received(message, buffers)

    _MESSAGES: ClassVar[dict[type[Any], Callable[[Dispatcher, _Node, Any, list[Filled]], None]]] = {
        messages.Done: _finished,
        messages.Failed: _finished,
        messages.Began: _began,
        messages.Returned: _returned,
        messages.Missing: _missing,
        messages.Output: _printed,
        **dict.fromkeys(ABOUT_STREAMS, _streamed),
    }

    # --- I/O thread: nodes, and the end ---

    def node_up(self, session: Session, slots: int) -> None:
        """Send tasks to a node from now on."""
        node = _Node(session, Streams(session, self._listeners), OutputLines(session.node, self._events))
        self._nodes[session.node] = node
        self._roll_caller.node_up(session)
        self._distributor.node_up(session)
        self._handle(schedule_events.NodeUp(session.node, slots))

    def node_down(self, name: str, reason: str, *, begun: bool = True) -> None:
        """Give up a node that is gone for good, with the tasks that it had. No effect if repeated.

        Parameters
        ----------
        name, reason
            Which node, and why.
        begun
            Whether tasks may have been running there.
        """
        node = self._nodes.pop(name, None)
        if node is not None:
            node.streams.close()
            self._roll_caller.node_down(name)
            self._completion.lost[name] = reason
        self._distributor.node_down(name)
        if node is not None:
            self._handle(schedule_events.NodeDown(name, begun))

    def hopeless(self, reason: str) -> None:
        """Fail all tasks, also those submitted later: no node is up and none will come."""
        self._completion.hopeless = reason
        self._handle(schedule_events.Hopeless())

    @property
    def answered(self) -> int:
        """How many tasks have succeeded, or failed by themselves, so far."""
        return self._schedule.answered

    async def drained(self) -> None:
        """Wait until no task is left."""
        await self._idle.wait()

    def cancel_all(self) -> None:
        """Cancel every task."""
        self._take_inbox()
        for task in list(self._jobs):  # not through the futures, whose callbacks are other people's code
            self._handle(schedule_events.Cancelled(task))

    def withdraw_all(self) -> None:
        """Cancel every task that has not begun."""
        self._take_inbox()
        for task in list(self._jobs):
            self._handle(schedule_events.Withdrawn(task))

    def close(self) -> None:
        """Settle what is left and end the delivery threads, after the loop has ended; nobody is left waiting."""
        self._inbox.extend(self._jobs.values())  # submitted by another thread while the nodes were being released
        self._jobs = {}
        self._woken = False  # the loop may have ended before it took the inbox; from now on posting notices that
        self._drop_inbox()
        self._completion.close()
        self._snapshots.clear()


def _check_answer(message: messages.Done | messages.Failed, node: _Node, job: Job | None) -> None:
    """Refuse an answer that a node has no reason to give.

    Parameters
    ----------
    message, node
        The answer, and where it comes from.
    job
        The task, unless it has settled; it need not be at that node.
    """
    if message.task > node.newest:
        raise ProtocolError(f"an answer for task {message.task}, which was never sent there")
    if job is None or not isinstance(message, messages.Failed):
        return
    cancelled = message.reason == messages.Failure.CANCELLED.value
    if cancelled and job.node == node.session.node and not job.withdrawn:
        raise ProtocolError(f"task {message.task} is cancelled, which was not asked for")
    if message.reason == messages.Failure.TIMEOUT.value and job.timeout is None:
        raise ProtocolError(f"task {message.task} is over its time limit, but has none")

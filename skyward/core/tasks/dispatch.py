"""From ``submit`` to a settled future: pickles in the caller's thread, decides in the I/O thread, delivers in a third.

The dispatcher carries out what `Schedule` commands, over the sessions of the nodes. It knows nothing of joblib, of
machines or of how nodes come to be.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import operator
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from skyward.core.blobs.array_cache import ArrayCache
from skyward.core.blobs.distributor import ABOUT_BLOBS, Distributor
from skyward.core.blobs.snapshots import Snapshot, Snapshots
from skyward.core.errors import PayloadError, PoolNotActive, ProtocolError, TaskTimeout
from skyward.core.events import Events, Note, Printed, TaskEnded, TasksQueued
from skyward.core.ioloop import IOThread
from skyward.core.labels import label as label_of
from skyward.core.nodes.session import Session
from skyward.core.payload import pickling
from skyward.core.payload.memory_maps import Named
from skyward.core.payload.shared_file import remove
from skyward.core.payload.surroundings import Surroundings, Within
from skyward.core.protocol import messages, wire
from skyward.core.protocol.roll_call import RollCall
from skyward.core.protocol.wire import Filled
from skyward.core.tasks import schedule_events
from skyward.core.tasks.answers import Answers, take_files, unanswered
from skyward.core.tasks.delivery import TOGETHER, Delivery, Errors
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import Job, TaskGroup, TaskOptions
from skyward.core.tasks.listening_sockets import Listeners
from skyward.core.tasks.schedule import Schedule
from skyward.core.tasks.schedule_events import Outcome, Verdict
from skyward.core.tasks.streams import ABOUT_STREAMS, Streams

__all__ = ["Dispatcher", "TaskGroup", "TaskOptions"]

_log = logging.getLogger("skyward.dispatch")

_T = TypeVar("_T")

_OVERHEAD = 0.0005  # seconds that a node takes to bring a task to a slot, besides the round trip
_LOOK_EVERY = 0.1  # seconds between two looks at nodes that hold tasks while others have none
_UNANSWERED = 12  # times that a node may be silent when it has been asked for its tasks
_LONGEST = 4 * 1024 * 1024  # bytes of a line that comes in several messages
_LARGEST = wire.Limits().message
_DEFAULT = TaskOptions()


@dataclass(slots=True, eq=False)
class _Node:
    session: Session
    streams: Streams
    roll: RollCall = field(default_factory=RollCall)
    printed: dict[int, bytearray] = field(default_factory=dict)  # by stream, a line of which there is more to come
    inquiry: int = 0  # number of the message that asked for what it has
    newest: int = 0  # task that it was given
    asked: int = 0  # tasks that it was asked to give back
    trouble: str = ""  # why the last run there failed


class Dispatcher:
    """Runs calls on nodes.

    Parameters
    ----------
    io
        The thread that owns everything but `submit`.
    events
        Who hears of tasks.
    isolated, timeout, attempts
        The pool's defaults for `TaskOptions`.
    shares
        Some nodes are on this machine and map large buffers instead of getting them.
    roll_call
        Seconds between two times that nodes are asked for what they should have.
    named
        Which memory maps of files go by the file's name, to be opened by the tasks: ``"all"`` where all nodes are on
        this machine.
    surroundings
        What the tasks of nodes on this machine find as it is here; None for nothing.
    answers
        Reads what comes back; None to unpickle it.
    listeners
        What byte streams of slots may lead to.
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
        self._io = io
        self._events = events
        self._isolated, self._timeout, self._attempts = isolated, timeout, attempts
        self._answers = answers or Answers()
        self._listeners = listeners or Listeners()
        self._schedule = Schedule()
        self._jobs: dict[int, Job] = {}
        self._nodes: dict[str, _Node] = {}
        self._distributor = Distributor()
        self._ids = itertools.count(1)
        self._common = TaskGroup()
        self._inbox: deque[schedule_events.Event | Job] = deque()
        self._woken = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._lost: dict[str, str] = {}
        self._roll_call = roll_call
        self._rolling: asyncio.TimerHandle | None = None
        self._snapshots = Snapshots(shares)
        self.named: Named = named
        self._why_hopeless = "no node is left"
        self._delivery = Delivery(self._deliver, f"{name}-delivery", operator.attrgetter("id"))
        self._errors = Errors(self._delivery, self._is_first)
        self._on_cancel = self._cancel  # one bound method for all futures
        self._pid = os.getpid()
        self._closed: str | None = None
        self.used = False
        """Whether a task was ever submitted."""

    def __repr__(self) -> str:
        return f"<Dispatcher {len(self._jobs)} jobs, {len(self._inbox)} in the inbox; {self._schedule}>"

    # --- any thread ---

    def submit(
        self, function: Callable[..., _T], /, *args: Any, options: TaskOptions = _DEFAULT, **kwargs: Any
    ) -> TaskFuture[_T]:
        """`call`, where no argument of the function's can be named `options`."""
        return self.call(function, args, kwargs, options)

    def call(
        self,
        function: Callable[..., _T],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: TaskOptions = _DEFAULT,
    ) -> TaskFuture[_T]:
        """Run ``function(*args, **kwargs)`` on a node. Never blocks.

        Raises
        ------
        PoolNotActive
            The pool is closed, or belongs to another process. Everything else that goes wrong is in the future.
        """
        if self._closed is not None:
            raise PoolNotActive(self._closed)
        if os.getpid() != self._pid:
            raise PoolNotActive("this pool belongs to the process that opened it, not to a fork of it: open one here")
        self.used = True
        task = next(self._ids)
        future: TaskFuture[_T] = TaskFuture(self._on_cancel, task)
        try:
            proxies = list(options.proxies)
            label = label_of(function)
            change = (options.group or self._common).change or self.surroundings.now()
            head, buffers = pickling.dumps(
                Within.of((function, args, kwargs), change),
                "the call",
                large=options.large,
                mode=options.mode,
                named=self.named,
                on_proxy=proxies.append,
            )
            future.size = len(head) + sum(map(len, buffers))
            if future.size > _LARGEST:
                raise PayloadError(f"the call of {label} holds over {_LARGEST:,} bytes; send it less")
            least = pickling.LARGE if options.large is None else min(pickling.LARGE, options.large)
            parts, blobs = self._keep(buffers, least, (options.group or self._common).arrays)
        except Exception as error:  # of copying too, which may find no room, and of the user's __getattr__
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        call = options.group or self._common
        timeout = self._timeout if options.timeout == "pool" else options.timeout
        if timeout is not None:
            timeout *= options.count  # a limit is per task of the user's
        job = Job(task, label, future, options, call.lane, timeout, [head, *parts], blobs)
        if proxies:
            job.authkey = self._listeners.sent(proxies)
        self._post(job)
        self._events.emit(TasksQueued(options.count))
        return future

    @property
    def unfinished(self) -> int:
        """About how many tasks have not settled; from any thread."""
        return len(self._jobs) + len(self._inbox)

    def arrays(self, limit: int | None) -> ArrayCache:
        """For a `TaskGroup` of that limit whose tasks have large arrays in common; see there."""
        return ArrayCache(self._snapshots, partial(self._schedule.at_a_time, limit))

    def _keep(
        self, buffers: list[memoryview], least: int, arrays: ArrayCache | None
    ) -> tuple[list[Snapshot], dict[int, bytes]]:
        """Copies of the buffers as they are now, and the digests of those that are blobs."""
        parts: list[Snapshot] = []
        blobs: dict[int, bytes] = {}
        source = self._snapshots if arrays is None else arrays
        for index, view in enumerate(buffers):
            if len(view) < least:
                parts.append(bytes(view))
            else:
                blobs[index], data = source.take(view)
                parts.append(data)
        return parts, blobs

    def _cancel(self, task: int) -> None:
        self._post(schedule_events.Cancelled(task))

    def _post(self, item: schedule_events.Event | Job) -> None:
        self._inbox.append(item)
        if not self._woken:
            self._woken = True
            try:
                self._io.post(self._take_inbox)
            except RuntimeError:  # the loop has ended, and close() may have looked already
                self._woken = False
                self._drop_inbox()

    # --- I/O thread: tasks ---

    def _take_inbox(self) -> None:
        self._woken = False  # before looking, so that whatever is appended from now on wakes us again
        while self._inbox:
            item = self._inbox.popleft()
            try:
                self._handle(self._submitted(item) if isinstance(item, Job) else item)
            except Exception:
                self._io.post(self._take_inbox)  # the others have their turn all the same
                raise

    def _submitted(self, job: Job) -> schedule_events.Submitted:
        self._jobs[job.id] = job.lane.out[job.id] = job
        self._idle.clear()
        options, call = job.options, job.options.group or self._common
        attempts = self._attempts if options.attempts is None else options.attempts
        return schedule_events.Submitted(job.id, id(call), call.limit, options.node, attempts)

    def _handle(self, event: schedule_events.Event) -> None:
        problem: Exception | None = None
        for command in self._schedule.handle(event):
            try:
                if isinstance(command, schedule_events.Run):
                    self._run(self._nodes[command.node], self._jobs[command.task], command.alone)
                elif isinstance(command, schedule_events.Settle):
                    self._settle(command)
                elif isinstance(command, schedule_events.Stop):
                    self._nodes[command.node].session.send(messages.Cancel(command.task))
                elif isinstance(command, schedule_events.Withdraw):
                    self._jobs[command.task].withdrawn = True
                    self._nodes[command.node].session.send(messages.Cancel(command.task, running=False))
                elif isinstance(command, schedule_events.Recall):
                    self._recall(self._nodes[command.node], command.limit)
                elif isinstance(command, schedule_events.Expel):
                    self._expel(self._nodes[command.node], command.failures)
                else:
                    asyncio.get_running_loop().call_later(_LOOK_EVERY, self._handle, schedule_events.Tick())
            except Exception as error:  # it must not take along those after it
                if isinstance(command, schedule_events.Run):
                    self._not_sent(command, error)
                else:
                    problem = problem or error
        if problem is not None:
            raise problem

    def _not_sent(self, command: schedule_events.Run, error: Exception) -> None:
        """A task is of a kind that can't be sent, to no node: it fails."""
        job = self._jobs[command.task]
        _log.info("task %d can't be sent to %s", job.id, command.node, exc_info=error)
        job.error = PayloadError(f"{job.label} (task {job.id}) can't be sent to {command.node}: {error}")
        job.error.__cause__ = error
        self._distributor.release(command.node, job.id)
        self._handle(schedule_events.Finished(job.id, command.node, Outcome.ANSWERED))

    def _expel(self, node: _Node, failed: int) -> None:
        reason = f"taken out, since {failed} tasks in a row failed there; the last: {node.trouble}"
        node.session.abandon(reason, barren=True)

    def _run(self, node: _Node, job: Job, alone: bool) -> None:
        if job.node:
            job.future.began, job.began = False, 0.0  # it is tried again
        job.node, job.is_here = node.session.node, node.session.shares
        node.newest = max(node.newest, job.id)
        if job.blobs:
            self._distributor.use(job.node, job.id, {name: job.buffers[index + 1] for index, name in job.blobs.items()})
        isolated = self._isolated if job.options.isolated is None else job.options.isolated
        alone = isolated or alone
        message = messages.Run(job.id, alone, job.timeout, job.options.threads, job.blobs, job.authkey)
        buffers = (
            [buffer for i, buffer in enumerate(job.buffers) if i - 1 not in job.blobs] if job.blobs else job.buffers
        )
        job.number = node.session.send(message, buffers)

    def _recall(self, node: _Node, most: int) -> None:
        """Ask for tasks that are not worth leaving there: on their way to another node they would lose a round trip."""
        node.asked = most
        node.session.send(messages.Recall(most, node.session.round_trip or 0.0))

    def _returned(self, node: _Node, tasks: list[int]) -> None:
        if len(tasks) > node.asked or any(task > node.newest for task in tasks):
            raise ProtocolError(f"tasks {tasks!r:.100} are given back, which nobody has asked for")
        node.asked = 0
        for task in tasks:
            self._distributor.release(node.session.node, task)
        self._handle(schedule_events.Returned(node.session.node, tasks))

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
            if job.answer is not None and isinstance(job.answer[0], messages.Failed):
                self._errors.put(job.lane, job)
            else:
                self._delivery.put(job.lane, job)
            self._errors.review(job.lane)

    def _is_first(self, job: Job) -> bool:
        """Whether no task of its lane is out that was submitted before; but one that runs for a while doesn't count."""
        long_ago = time.monotonic() - TOGETHER
        for other in job.lane.out.values():
            if other.id >= job.id:
                break
            if not 0.0 < other.began < long_ago:
                return False
        return True

    # --- I/O thread: nodes ---

    def received(self, session: Session, message: messages.Message, buffers: list[Filled]) -> None:
        """A node's word, from its session."""
        if isinstance(message, ABOUT_BLOBS):
            self._distributor.received(session, message)
            return
        node = self._nodes.get(session.node)
        if node is None:
            if session.shares and isinstance(message, messages.Done):
                remove(message.files.values())
            return
        if isinstance(message, (messages.Done, messages.Failed)):
            self._finished(node, message, buffers)
        elif isinstance(message, messages.Returned):
            self._returned(node, message.tasks)
        elif isinstance(message, messages.Began):
            self._began(node, message.tasks)
        elif isinstance(message, messages.Missing):
            self._missed(node, message.tasks)
        elif isinstance(message, messages.Output):
            self._printed(node, message, buffers)
        elif isinstance(message, ABOUT_STREAMS):
            node.streams.received(message, buffers)

    def _began(self, node: _Node, tasks: list[int]) -> None:
        now = time.monotonic()
        for task in tasks:
            if (job := self._jobs.get(task)) is not None and job.node == node.session.node:
                job.future.began = True
                job.began = now
        self._handle(schedule_events.Began(node.session.node, tasks))

    def _finished(self, node: _Node, message: messages.Done | messages.Failed, buffers: list[Filled]) -> None:
        job = self._jobs.get(message.task)
        if message.task > node.newest:
            raise ProtocolError(f"an answer for task {message.task}, which was never given")
        if isinstance(message, messages.Failed) and message.reason == messages.Failure.CANCELLED.value:
            if job is not None and job.node == node.session.node and not job.withdrawn:
                raise ProtocolError(f"task {message.task} is given up, which nobody has asked for")
        elif isinstance(message, messages.Failed) and message.reason == messages.Failure.TIMEOUT.value:
            if job is not None and job.timeout is None:
                raise ProtocolError(f"task {message.task} is over its limit, and has none")
        elif isinstance(message, messages.Done) and message.files:
            message, buffers = take_files(node.session, message, buffers)
        if job is not None and job.node == node.session.node:
            job.answer = (message, buffers)
            if job.blobs and job.options.group is not None and job.options.group.arrays is not None:
                job.options.group.arrays.ran(message.seconds)
        self._distributor.release(node.session.node, message.task)
        failed, outcome = isinstance(message, messages.Failed), Outcome.ANSWERED
        if isinstance(message, messages.Failed):
            outcome = _OUTCOMES.get(message.reason, Outcome.ANSWERED)
            node.trouble = message.detail
        trip = node.session.round_trip
        self._handle(
            schedule_events.Finished(
                message.task,
                node.session.node,
                outcome,
                None if failed else message.seconds,
                None if trip is None else trip + _OVERHEAD,
            )
        )

    def _printed(self, node: _Node, message: messages.Output, buffers: list[Filled]) -> None:
        """Whole lines go to whoever shows them; one that came in pieces too."""
        text = node.printed.pop(message.stream, bytearray()) + buffers[0]
        if message.more and len(text) < _LONGEST:
            node.printed[message.stream] = text
        else:
            printed = text.decode("utf-8", "backslashreplace")
            self._events.emit(Printed(node.session.node, message.stream, printed))

    def _call_roll(self) -> None:
        """Ask each node for the tasks that it has had for a while."""
        for node in self._nodes.values():
            if not node.session.linked:
                continue  # it can't say; how long that may last is the session's to know
            if asked := node.roll.ask(self._held(node)):
                node.inquiry = node.session.send(messages.Inquire(asked))
            elif node.roll.unanswered >= _UNANSWERED and node.session.acknowledged >= node.inquiry:
                node.session.abandon("it was asked which of its tasks it has, and does not say")
        self._rolling = asyncio.get_running_loop().call_later(self._roll_call, self._call_roll) if self._nodes else None

    def _held(self, node: _Node) -> dict[int, int]:
        """What a node should have, as `RollCall` wants it: a question must not overtake the task itself."""
        arrived = node.session.acknowledged
        jobs = [self._jobs[task] for task in self._schedule.out(node.session.node)]
        return {job.id: job.number for job in jobs if job.number <= arrived}

    def _missed(self, node: _Node, tasks: list[int]) -> None:
        """A node does not know these any more; those that it should know are tried again as after a crash."""
        for task in node.roll.lost(tasks, self._held(node)):
            text = f"{node.session.node} has lost {self._jobs[task].label} (task {task}), which it had been given"
            _log.warning("%s", text)
            self._events.emit(Note(f"{text}: it counts as if its worker had died", warning=True))
            self._finished(node, messages.Failed(task, 0.0, messages.Failure.CRASHED.value, "the node lost it"), [])

    def node_up(self, session: Session, slots: int) -> None:
        """A session's node takes tasks from now on."""
        self._nodes[session.node] = _Node(session, Streams(session, self._listeners))
        if self._rolling is None:
            self._rolling = asyncio.get_running_loop().call_later(self._roll_call, self._call_roll)
        self._distributor.node_up(session)
        self._handle(schedule_events.NodeUp(session.node, slots))

    def node_down(self, name: str, reason: str, *, begun: bool = True) -> None:
        """A node is gone for good, with the tasks that it had; said again, it has no effect."""
        node = self._nodes.pop(name, None)
        if node is not None:
            node.streams.close()
            self._lost[name] = reason
        self._distributor.node_down(name)
        if node is not None:
            self._handle(schedule_events.NodeDown(name, begun))

    def hopeless(self, reason: str) -> None:
        """No node is up and none will come; what waits, and what comes, fails."""
        self._why_hopeless = reason
        self._handle(schedule_events.Hopeless())

    @property
    def answered(self) -> int:
        """How many tasks had an answer of their own so far."""
        return self._schedule.answered

    async def drained(self) -> None:
        """Wait until no task is left."""
        await self._idle.wait()

    # --- delivery thread ---

    def _deliver(self, job: Job) -> None:
        future = job.future
        if job.verdict is Verdict.CANCELLED:
            concurrent.futures.Future.cancel(future)  # unless it was the future that asked for it
        if not future.set_running_or_notify_cancel():
            self._events.emit(TaskEnded(job.options.count, 0.0, ok=False, cancelled=True))
            return
        result: Any = None
        error: BaseException | None
        try:
            result, error = self._outcome(job)
        except BaseException as problem:  # what a node says may be anything, and run anything when it is loaded
            error = PayloadError(f"the answer of {job.label} on {job.node} can't be read: {type(problem).__name__}")
            error.__cause__ = problem
        self._events.emit(TaskEnded(job.options.count, future.seconds or 0.0, error is None))
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _outcome(self, job: Job) -> tuple[Any, BaseException | None]:
        """The result, or what is raised instead of it."""
        if job.error is not None:
            return None, job.error
        if job.verdict is Verdict.ANSWERED and job.answer is not None:
            message, buffers = job.answer
            job.answer = None
            job.future.seconds = message.seconds
            job.future.result_size = sum(map(len, buffers))
            if isinstance(message, messages.Failed):
                return None, self._failure(job, message, buffers)
            return self._answers.result(f"{job.label} on {job.node}", buffers)
        return None, unanswered(job, self._why_hopeless, self._lost)

    def _failure(self, job: Job, message: messages.Failed, buffers: Sequence[Filled]) -> BaseException:
        if message.reason == messages.Failure.TIMEOUT.value:
            return TaskTimeout(
                f"{job.label} (task {job.id}) on {job.node} was stopped after {job.timeout:g} s; "
                "raise Compute(timeout=...), or None for no limit"
            )
        error = self._answers.failure(message, buffers, here=job.is_here)
        self.surroundings.explain(error)
        return error

    # --- the end ---

    def shut(self, why: str) -> None:
        """Refuse new tasks from now on; from any thread."""
        self._closed = why

    def cancel_all(self) -> None:
        """Give up every task; in the I/O thread."""
        self._take_inbox()
        for task in list(self._jobs):  # not by the futures: their callbacks are other people's code
            self._handle(schedule_events.Cancelled(task))

    def withdraw_all(self) -> None:
        """Cancel every task that has not begun; in the I/O thread."""
        self._take_inbox()
        for task in list(self._jobs):
            self._handle(schedule_events.Withdrawn(task))

    def close(self) -> None:
        """End the delivery threads, after the loop has ended; nobody is left waiting."""
        self._inbox.extend(self._jobs.values())  # submitted by another thread while the nodes were given back
        self._jobs = {}
        self._woken = False  # the loop may have ended before it looked; from now on posting finds that it has
        self._drop_inbox()
        self._errors.flush()
        self._delivery.close()
        self._snapshots.clear()

    def _drop_inbox(self) -> None:
        """Give up what no loop will take any more; from any thread."""
        while self._inbox:
            with contextlib.suppress(IndexError):  # another thread was faster
                item = self._inbox.popleft()
                if isinstance(item, Job):
                    concurrent.futures.Future.cancel(item.future)
                    item.future.set_running_or_notify_cancel()


_OUTCOMES = {
    messages.Failure.CRASHED.value: Outcome.CRASHED,
    messages.Failure.REFUSED.value: Outcome.REFUSED,
    messages.Failure.SHARED_CRASH.value: Outcome.SHARED_CRASH,
    messages.Failure.CANCELLED.value: Outcome.STOPPED,
}

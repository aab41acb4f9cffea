"""Runs tasks on nodes: carries out what `Schedule` commands, and reports to it what the nodes' messages say."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from skyward.core.blobs.distributor import ABOUT_BLOBS, Distributor
from skyward.core.blobs.snapshots import Snapshots
from skyward.core.code.local_code import CodeVersion
from skyward.core.errors import NodeLost, PayloadError, ProtocolError, TaskError
from skyward.core.events import Events, Note
from skyward.core.files.node_files import NodeFiles
from skyward.core.nodes import node_reports
from skyward.core.nodes.session import Session
from skyward.core.payload.shared_file import remove
from skyward.core.protocol import messages
from skyward.core.protocol.wire import Filled
from skyward.core.status import RunningTask
from skyward.core.tasks import schedule_events
from skyward.core.tasks.answers import take_files
from skyward.core.tasks.completion import Completion
from skyward.core.tasks.jobs import Job
from skyward.core.tasks.late_packages import LatePackages, Supplier
from skyward.core.tasks.listening_sockets import Listeners
from skyward.core.tasks.output_lines import OutputLines
from skyward.core.tasks.roll_caller import RollCaller
from skyward.core.tasks.schedule import Schedule
from skyward.core.tasks.schedule_events import Outcome, Verdict
from skyward.core.tasks.streams import ABOUT_STREAMS, Streams

__all__ = ["TaskRunner"]

_log = logging.getLogger("skyward.runner")

_OVERHEAD = 0.0005  # seconds that a node takes to bring a task to a slot, in addition to the round trip
_TICK = 0.1  # seconds from `StartTimer` to `TimerFired`
_OUTCOMES = {
    messages.Failure.CRASHED.value: Outcome.CRASHED,
    messages.Failure.REFUSED.value: Outcome.REFUSED,
    messages.Failure.SHARED_CRASH.value: Outcome.SHARED_CRASH,
    messages.Failure.CANCELLED.value: Outcome.STOPPED,
}


@dataclass(slots=True, eq=False)
class _LiveNode:
    session: Session
    streams: Streams
    output: OutputLines
    newest: int = 0  # highest number of a task that was sent there
    recalled: int = 0  # number of tasks that it was asked to return
    trouble: str = ""  # why the last failed run there failed
    code: CodeVersion | None = None  # the latest that it was sent
    codes: set[int] = field(default_factory=set)  # the numbers of all that it was sent


class TaskRunner:
    """Runs tasks on the nodes of one pool. Belongs to the event loop.

    Parameters
    ----------
    events
        Where output and notes are reported.
    snapshots
        Copies of large buffers, released as tasks settle.
    completion
        Completes the futures of tasks that have settled.
    listeners
        Where byte streams of slots may lead.
    isolated, attempts
        The pool's defaults for `TaskOptions`.
    roll_call
        Seconds between two times that nodes are asked which tasks they have.
    supplier
        Knows the packages that nodes can get when a task turns out to need them; None: they get none.
    """

    def __init__(
        self,
        events: Events,
        snapshots: Snapshots,
        completion: Completion,
        listeners: Listeners,
        *,
        isolated: bool,
        attempts: int,
        roll_call: float,
        supplier: Supplier | None = None,
    ) -> None:
        self.jobs: dict[int, Job] = {}
        """Tasks that have not settled; other threads may count them."""
        self._begun: dict[int, Job] = {}  # those that their nodes have reported as begun, in the order of the reports
        self.schedule = Schedule()
        self._events = events
        self._snapshots = snapshots
        self._completion = completion
        self._listeners = listeners
        self._isolated, self._attempts = isolated, attempts
        self._nodes: dict[str, _LiveNode] = {}
        self.running = partial(_running, self._begun, self._nodes)
        """Returns the tasks that have run for a moment, the longest first; from any thread."""
        self._distributor = Distributor(events)
        self.files = NodeFiles(self._distributor)
        self._roll_caller = RollCaller(roll_call, self._held)
        self._late = LatePackages(supplier, events, self._run, self.handle)
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"<TaskRunner {len(self.jobs)} jobs; {self.schedule}>"

    # --- tasks ---

    def submitted(self, job: Job) -> None:
        """Take a new task."""
        self.jobs[job.id] = job.group.lane.out[job.id] = job
        self._idle.clear()
        attempts = self._attempts if job.options.attempts is None else job.options.attempts
        self.handle(schedule_events.Submitted(job.id, id(job.group), job.group.limit, job.options.node, attempts))

    def handle(self, event: schedule_events.Event) -> None:
        """Carry out what follows from an event; a command that fails does not affect those after it."""
        problem: Exception | None = None
        for command in self.schedule.handle(event):
            try:
                self._COMMANDS[type(command)](self, command)
            except Exception as error:
                problem = problem or error
        if problem is not None:
            raise problem

    def _run(self, command: schedule_events.Run) -> None:
        """Send a task to a node. One that can't be sent, to whatever node, fails."""
        node, job = self._nodes[command.node], self.jobs[command.task]
        try:
            self._send(node, job, command.alone)
        except Exception as error:
            _log.info("task %d can't be sent to %s", job.id, command.node, exc_info=error)
            job.error = PayloadError(f"{job.title} (task {job.id}) can't be sent to {command.node}: {error}")
            job.error.__cause__ = error
            self._distributor.release(command.node, job.id)
            self.handle(schedule_events.Finished(job.id, command.node, Outcome.ANSWERED))

    def _send(self, node: _LiveNode, job: Job, alone: bool) -> None:
        if job.node:
            self._begun.pop(job.id, None)
            job.future.began, job.began, job.ended, job.slot = False, 0.0, 0.0, -1  # it is retried
        job.node, job.is_here = node.session.node, node.session.shares
        job.alone = alone
        node.newest = max(node.newest, job.id)
        buffers = job.buffers
        if job.blobs:
            self._distributor.use(job.node, job.id, {name: buffers[index + 1] for index, name in job.blobs.items()})
            buffers = [buffer for index, buffer in enumerate(buffers) if index - 1 not in job.blobs]
        isolated = self._isolated if job.options.isolated is None else job.options.isolated
        code = (0, 0) if job.code is None else _send_code(node, job.code, self._distributor)
        threads = job.options.threads
        message = messages.Run(job.id, isolated or alone, job.timeout, threads, job.blobs, job.authkey, *code)
        job.number = node.session.send(message, buffers)

    def _stop(self, command: schedule_events.Stop) -> None:
        if not self._late.stop(self.jobs[command.task]):
            self._nodes[command.node].session.send(messages.Cancel(command.task))

    def _withdraw(self, command: schedule_events.Withdraw) -> None:
        self.jobs[command.task].withdrawn = True
        if not self._late.stop(self.jobs[command.task]):
            self._nodes[command.node].session.send(messages.Cancel(command.task, running=False))

    def _recall(self, command: schedule_events.Recall) -> None:
        """Ask for tasks, except those better left there: sending them elsewhere would take a round trip."""
        node = self._nodes[command.node]
        node.recalled = command.limit
        node.session.send(messages.Recall(command.limit, node.session.round_trip or 0.0))

    def _expel(self, command: schedule_events.Expel) -> None:
        node = self._nodes[command.node]
        reason = f"taken out of service: {command.failures} tasks in a row failed there; the last one: {node.trouble}"
        node.session.abandon(reason, barren=True)

    def _start_timer(self, _: schedule_events.StartTimer) -> None:
        asyncio.get_running_loop().call_later(_TICK, self.handle, schedule_events.TimerFired())

    def _settle(self, command: schedule_events.Settle) -> None:
        job = self.jobs.pop(command.task)
        self._begun.pop(job.id, None)
        self._late.settled(job)
        del job.group.lane.out[job.id]
        job.verdict = command.verdict
        if job.verdict is Verdict.CANCELLED or (job.answer is not None and isinstance(job.answer[0], messages.Done)):
            job.buffers = []  # of a failure they are needed a little longer, for `last_failure`
        try:
            if job.blobs or self._snapshots.dropped:  # called for each task, of which few have any
                self._snapshots.release(job.blobs.values())
        finally:
            if not self.jobs:
                self._idle.set()
            self._completion.settled(job)

    _COMMANDS: ClassVar[dict[type[Any], Callable[[TaskRunner, Any], None]]] = {
        schedule_events.Run: _run,
        schedule_events.Settle: _settle,
        schedule_events.Stop: _stop,
        schedule_events.Withdraw: _withdraw,
        schedule_events.Recall: _recall,
        schedule_events.Expel: _expel,
        schedule_events.StartTimer: _start_timer,
    }

    # --- messages of nodes ---

    def received(self, session: Session, message: messages.Message, buffers: list[Filled]) -> None:
        """Handle a message of a node; called by its session.

        Parameters
        ----------
        session
            The session of the node, which may not be up yet, or no longer.
        message, buffers
            What it says.
        """
        kind = type(message)
        if kind in ABOUT_BLOBS:
            self._distributor.received(session, message)
        elif isinstance(message, messages.Reply):
            self.files.requests.received(session, message, buffers)
        elif (node := self._nodes.get(session.node)) is not None:
            handle = self._MESSAGES.get(kind)
            if handle is None:
                raise ProtocolError(f"{kind.__name__} with a number")
            handle(self, node, message, buffers)
        elif isinstance(message, messages.Done) and session.shares:
            remove(message.files.values())

    def _began(self, node: _LiveNode, message: messages.Began, _: list[Filled]) -> None:
        now = asyncio.get_running_loop().time()
        for task, slot in zip(message.tasks, message.slots, strict=True):
            if (job := self.jobs.get(task)) is not None and job.node == node.session.node:
                self._begun[task] = job
                job.future.began = True
                job.began, job.slot = now, slot - 1
        self.handle(schedule_events.Began(node.session.node, message.tasks))

    def _returned(self, node: _LiveNode, message: messages.Returned, _: list[Filled]) -> None:
        tasks = message.tasks
        if len(tasks) > node.recalled or any(task > node.newest for task in tasks):
            raise ProtocolError(f"it returned tasks that were not recalled: {tasks!r:.100}")
        node.recalled = 0
        for task in tasks:
            self._distributor.release(node.session.node, task)
        self.handle(schedule_events.Returned(node.session.node, tasks))

    def _finished(self, node: _LiveNode, message: messages.Done | messages.Failed, buffers: list[Filled]) -> None:
        session = node.session
        job = self.jobs.get(message.task)
        mine = job if job is not None and job.node == session.node else None
        _check_answer(message, node, job)
        if isinstance(message, messages.Done) and message.files:
            message, buffers = take_files(session, message, buffers)
        if mine is not None:
            self._begun.pop(mine.id, None)
            mine.answer, mine.ended, mine.slot = (message, buffers), session.heard, message.slot - 1
            if mine.blobs and mine.group.arrays is not None:
                mine.group.arrays.ran(message.seconds)
        if mine is None or mine.blobs:
            self._distributor.release(session.node, message.task)
        if mine is not None and isinstance(message, messages.Failed) and self._late.takes(session, mine, message):
            return
        seconds, outcome = message.seconds, Outcome.ANSWERED
        measured: float | None = seconds
        if isinstance(message, messages.Failed):
            measured = None
            outcome = _OUTCOMES.get(message.reason, Outcome.ANSWERED)
            node.trouble = message.detail
        overhead = None if session.round_trip is None else session.round_trip + _OVERHEAD
        self.handle(schedule_events.Finished(message.task, session.node, outcome, measured, overhead))

    def _missing(self, node: _LiveNode, message: messages.Missing, _: list[Filled]) -> None:
        """Retry tasks that a node should have and does not have, as after a crash."""
        for task in self._roll_caller.lost(node.session, message.tasks):
            text = f"{node.session.node} has lost {self.jobs[task].title} (task {task}), which was sent to it"
            _log.warning("%s", text)
            self._events.emit(Note(f"{text}: this counts as if its worker had died", warning=True))
            self._finished(node, messages.Failed(task, 0.0, messages.Failure.CRASHED.value, "the node lost it"), [])

    def _held(self, session: Session) -> dict[int, int]:
        """Return the tasks that a node should have, for `RollCaller`: a question must not overtake the task itself."""
        arrived = session.acknowledged
        jobs = [self.jobs[task] for task in self.schedule.out(session.node)]
        return {job.id: job.number for job in jobs if job.number <= arrived and not self._late.holds(job)}

    def _printed(self, node: _LiveNode, message: messages.Output, buffers: list[Filled]) -> None:
        node.output.received(message, buffers)

    def _streamed(
        self,
        node: _LiveNode,
        message: messages.StreamOpen | messages.StreamData | messages.StreamClose,
        buffers: list[Filled],
    ) -> None:
        node.streams.received(message, buffers)

    _MESSAGES: ClassVar[dict[type[Any], Callable[[TaskRunner, _LiveNode, Any, list[Filled]], None]]] = {
        messages.Done: _finished,
        messages.Failed: _finished,
        messages.Began: _began,
        messages.Returned: _returned,
        messages.Missing: _missing,
        messages.Output: _printed,
        messages.Load: lambda self, node, message, _: self._events.emit(node_reports.load(node.session.node, message)),
        **dict.fromkeys(ABOUT_STREAMS, _streamed),
    }

    # --- nodes ---

    def node_up(self, session: Session, slots: int) -> None:
        """Send tasks to a node from now on."""
        node = _LiveNode(session, Streams(session, self._listeners), OutputLines(session.node, self._events))
        self._nodes[session.node] = node
        self._roll_caller.node_up(session)
        self._distributor.node_up(session)
        self.handle(schedule_events.NodeUp(session.node, slots))

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
        self._late.node_down(name)
        self.files.node_down(name, reason)
        if node is not None:
            self.handle(schedule_events.NodeDown(name, begun))

    def hopeless(self, reason: str, error: type[TaskError] = NodeLost, *, ending: bool = False) -> None:
        """Fail all tasks, also those submitted later: no node is up and none will come.

        Parameters
        ----------
        reason
            Why.
        error
            What the tasks fail with.
        ending
            Whether nodes may still be up: they will be gone in a moment, and what runs there is stopped.
        """
        self._completion.hopeless = error(reason)
        self.handle(schedule_events.Hopeless(ending))

    @property
    def answered(self) -> int:
        """How many tasks have succeeded, or failed by themselves, so far."""
        return self.schedule.answered

    async def drained(self) -> None:
        """Wait until no task is left."""
        await self._idle.wait()


def _send_code(node: _LiveNode, code: CodeVersion, distributor: Distributor) -> tuple[int, int]:
    """Make sure that a node gets a version of the user's code; return its number, and since when it was only added to.

    The bundles of the latest version stay in the node's store, from where other nodes may get them.
    """
    if code.number in node.codes or code.manifest is None:
        return code.number, code.since
    name = node.session.node
    node.codes.add(code.number)
    node.session.send(messages.Code(code.number, code.bundles), [code.manifest])
    distributor.use(name, -code.number, code.blobs)
    done = code
    if node.code is None or node.code.number < code.number:
        done, node.code = node.code or code, code
    if done is not node.code:
        distributor.release(name, -done.number)
    return code.number, code.since


def _running(begun: Mapping[int, Job], nodes: Container[str]) -> list[RunningTask]:
    now = time.monotonic()
    jobs = [job for job in list(begun.values()) if job.node in nodes]  # the list is made at once
    return [RunningTask(job.node, job.slot, job.label, job.options.count, now - job.began) for job in jobs]


def _check_answer(message: messages.Done | messages.Failed, node: _LiveNode, job: Job | None) -> None:
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
        raise ProtocolError(f"it cancelled task {message.task}, which was not asked for")
    if message.reason == messages.Failure.TIMEOUT.value and job.timeout is None:
        raise ProtocolError(f"it reports a timeout of task {message.task}, which has no time limit")

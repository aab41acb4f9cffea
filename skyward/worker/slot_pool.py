"""Runs the slots: carries out what `SlotTable` decides, with processes, sockets, pipes and timers.

Everything here happens on the agent's loop. Which task runs where is decided in slot_table.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from skyward.core.errors import ProtocolError
from skyward.core.payload.shared_file import remove
from skyward.core.protocol.messages import (
    Began,
    Cancel,
    Code,
    Done,
    Failed,
    Failure,
    Message,
    Missing,
    Ready,
    Recall,
    Returned,
    Run,
    Setup,
    StreamClose,
    StreamData,
)
from skyward.core.protocol.wire import Buffer, Filled, Received, Role, Wire
from skyward.core.system import open_files
from skyward.worker import exit_status
from skyward.worker.agent_system import AgentSystem
from skyward.worker.bridge import Bridge
from skyward.worker.code_folders import CodeFolders
from skyward.worker.forkserver.client import ForkServerClient, fork_config
from skyward.worker.forkserver.launch import ForkServerProcess
from skyward.worker.forkserver.protocol import EXITED, FAILED, FORKED, PEAK, SEATED, UP
from skyward.worker.forkserver.restarts import Ended, RestartPolicy
from skyward.worker.held_answers import HeldAnswers
from skyward.worker.output import SlotOutput
from skyward.worker.owner_traffic import OwnerTraffic
from skyward.worker.result_files import UnclaimedFiles
from skyward.worker.slot_process import PendingTask, SlotProcess
from skyward.worker.slot_table import Command, Fork, Kill, Reclaim, Settle, SlotTable, Start
from skyward.worker.task_blobs import TaskBlobs
from skyward.worker.task_progress import TaskProgress
from skyward.worker.tickets import Tickets
from skyward.worker.wire_socket import WireSocket

__all__ = ["SlotPool", "allow_files"]

_REST = 0.0002  # seconds
_LONG = 3  # times the mean: a task that has run for that long may run on for any time
_SHORT = 0.02  # seconds that a task may always run before it counts as long
_FILES_PER_SLOT = 5  # its socket, two pipes for what it prints, one for tickets
_FILES_AGENT = 24  # the agent's own, with a connection, and a slot that is being made
_FILES_MORE = 1024  # for blobs and streams, whose number is the agent's choice
_HUNG_UP = 1.0  # seconds that a slot may take to end after its connection has closed


class SlotPool:
    """All slots of a node, and the tasks that wait for them.

    Parameters
    ----------
    loop
        The agent's loop.
    setup
        How tasks run here.
    cores
        Number of the machine's cores that tasks may use.
    folder
        A folder that only this user can enter.
    post
        Sends a numbered message to the owner, perhaps a little later, and returns its number.
    server
        A fork server that waits for its configuration, whose environment is the agent's; None to start one.
    own
        The agent's part of the fork server's configuration: see `fork_config`.
    system
        How fork servers are started, the loop's thread sleeps, and blobs are stored.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        setup: Setup,
        cores: int,
        folder: str,
        post: Callable[[Message, Sequence[Buffer], bool], int],
        server: ForkServerProcess | None,
        own: Mapping[str, object],
        system: AgentSystem,
    ) -> None:
        self.setup = setup
        self.table = SlotTable(setup.concurrency)
        self._loop = loop
        self._system = system
        self._owner = OwnerTraffic(post, self._throttle)
        store = self._system.make_store((open_files.limit() - _files(setup.concurrency)) // 2)
        self.blobs = TaskBlobs(store, self._owner.post, self._warn, self._has_blobs)
        self._code = CodeFolders(f"{folder}/code", store, self._unblock, self._refuse_task) if setup.code else None
        self._processes: dict[int, SlotProcess] = {}
        self._tasks: dict[int, PendingTask] = {}
        self._progress = TaskProgress(
            loop, self.table, self._processes, self._tasks, lambda *begun: self._owner.post(Began(*begun))
        )
        self._warming: set[int | None] = set()  # slots that were made ahead and are not up yet
        self._last_mark = 0
        self._oom = system.watch_memory()
        self._announced = self._resting = False
        self._restarts = RestartPolicy()
        self._bridge = Bridge(loop, f"{folder}/bridge.sock", self._owner.stream)
        result_files = store.result_files() if setup.shares else None
        self._results = UnclaimedFiles(result_files)
        self._held: HeldAnswers | None = None
        places = {"bridge": self._bridge.path, "result_files": result_files}
        places["code"] = self._code.folder if self._code is not None else ""
        self._config = fork_config(setup, cores, places, own)
        self._fork_server = self._new_fork_server(server=server)

    def __repr__(self) -> str:
        return f"<SlotPool of {self.setup.node!r}: {self.table!r}>"

    # --- messages of the owner ---

    def submit(self, run: Run, buffers: Sequence[Buffer]) -> None:
        """Take a task."""
        if run.task in self._tasks:
            return
        self._tasks[run.task] = PendingTask(run, buffers)
        blocked = bool(run.blobs) and not self.blobs.use(run.task, run.blobs.values())
        if run.code and self._code is not None:
            blocked = not self._code.use(run.task, run.code) or blocked
        self._apply(self.table.submit(run.task, run.isolated, blocked, run.since))
        if blocked and self._code is not None and (problem := self._code.refusal(run.code)):
            self._refuse_task(run.task, problem)

    def code(self, code: Code, manifest: Buffer) -> None:
        """Take a version of the user's code, whose bundles arrive as blobs."""
        if self._code is None:
            raise ProtocolError("Code where Setup says that there is none")
        self._code.announced(code, manifest)
        if self.blobs.use(-code.version, set(code.bundles)):
            self._has_blobs(-code.version)

    def _has_blobs(self, number: int) -> None:
        """Note that all blobs of a task have arrived or, if the number is negative, of a version of the code."""
        if number > 0:
            self._unblock(number)
        elif self._code is not None:
            self.blobs.release(number, set(self._code.arrived(-number)))

    def _unblock(self, task: int) -> None:
        if not self.blobs.lacks(task) and not (self._code is not None and self._code.lacks(task)):
            self._apply(self.table.unblock(task))

    def _refuse_task(self, task: int, detail: str) -> None:
        self._apply(self.table.refuse(task, detail))

    def cancel(self, request: Cancel) -> None:
        """Cancel a task: whatever it does, or only if it has not begun."""
        slot = self.table.running.get(request.task)
        if slot is not None:
            self._reclaim(slot.number)
        if request.running or request.task not in self.table.running:
            self._apply(self.table.cancel(request.task))
        else:
            self._apply(self.table.dispatch())

    def recall(self, request: Recall) -> None:
        """Return tasks that this node will not begin soon, for another node that is idle."""
        for number in [number for number, slot in self.table.slots.items() if slot.ahead]:
            self._reclaim(number)
        tasks = self.table.recall(request.limit, self.table.soon(request.within, self._punctual()))
        for task in tasks:
            self._release(task)
        self._owner.answer(tasks, Returned(tasks))
        self._apply(self.table.dispatch())

    def inquire(self, tasks: list[int]) -> None:
        """Report which of these tasks are not here; an answer may be on its way to the owner."""
        missing = [task for task in tasks if task not in self._tasks and not self._owner.is_answered(task)]
        if (held := self._held) is not None:
            missing = [task for task in missing if task not in held]
        self._owner.post(Missing(missing))

    def stream(self, message: StreamData | StreamClose, data: Filled | None) -> None:
        """Pass a part of a byte stream on to its slot."""
        self._bridge.receive(message, data)

    def acknowledged(self, received: int) -> None:
        """The owner has everything up to this number, so what was held back may flow again."""
        self._owner.acknowledged(received)
        self._results.acknowledge(received)

    def hold_answers(self, held: HeldAnswers) -> None:
        """From now on, hold what tasks return until what they wrote is saved."""
        self._held = held

    async def end(self) -> None:
        """Let idle slots end in order, kill the others, and remove all files."""
        for number, process in self._processes.items():
            slot = self.table.slots.get(number)
            if slot is not None and slot.tasks:
                self._fork_server.kill(number)
            process.link.close()
        await self._fork_server.end(wait=3.0 if self.setup.around else 1.0)
        self.close()

    def close(self) -> None:
        """Kill all slots and remove all files, at once."""
        self._progress.close()
        self._fork_server.kill_all()
        self._bridge.close()
        self.blobs.store.close()

    def _punctual(self) -> int:
        """How many slots run a task that has not taken longer than tasks usually do."""
        limit = self._loop.time() - max(_LONG * (self.table.mean or 0.0), _SHORT)
        return sum(self._tasks[task].began > limit for task in self.table.running)

    # --- commands of the table ---

    def _apply(self, commands: list[Command]) -> None:
        if not commands:
            return
        for command in commands:
            self._COMMANDS[type(command)](self, command)
        for number in {command.slot for command in commands if type(command) is Start}:
            if process := self._processes.get(number):
                process.hand_over()

    def _start(self, command: Start) -> None:
        task, number = command
        process = self._processes.get(number)
        if process is None:
            return  # it could not be made; `SlotTable.refused` follows
        pending = self._tasks[task]
        run, buffers = pending.run, pending.buffers
        if run.blobs:
            run, buffers = self.blobs.place(run, buffers)
        slot = self.table.slots[number]
        if not slot.shared:
            process.tickets.add(task)
        if process.up and (slot.shared or slot.first == task):
            self._begins(task)
        self._last_mark += 1
        pending.mark = self._last_mark
        process.link.queue(run, buffers)

    def _settle(self, command: Settle) -> None:
        pending = self._tasks[command.task]
        seconds = self._loop.time() - pending.began if pending.began else 0.0
        self._release(command.task)
        self._owner.answer([command.task], Failed(command.task, seconds, command.reason.value, command.detail))

    def _fork(self, command: Fork) -> None:
        number = command.slot
        opened: list[int] = []
        try:
            ours, theirs = socket.socketpair()
            opened += (ours.detach(), theirs.detach(), *os.pipe(), *os.pipe(), *os.pipe())
            opened.append(os.dup(opened[6]))
        except OSError as error:
            for fd in opened:
                os.close(fd)
            self._loop.call_soon(self._refuse, number, f"can't make a slot: {error}")
            return
        sock, theirs_sock, out, theirs_out, err, theirs_err, read, write, theirs_read = opened
        self._fork_server.fork(number, command.shared, (theirs_sock, theirs_out, theirs_err, theirs_read))
        link = WireSocket(
            self._loop,
            socket.socket(fileno=sock),
            Wire.opened(Role.OWNER, fifo=True),  # tickets rely on it
            lambda received: self._hear(number, received),
            lambda _: self._hung_up(number),
            eager=True,
        )
        output = SlotOutput(self._loop, (out, err), self._owner.print)
        output.pause(self._owner.output_full)
        self._processes[number] = SlotProcess(link, output, Tickets(read, write))

    def _reclaim_and_dispatch(self, command: Reclaim) -> None:
        self._reclaim(command.slot)
        self._apply(self.table.dispatch())

    def _kill(self, command: Kill) -> None:
        self._fork_server.kill(command.slot)

    _COMMANDS: ClassVar[dict[type[Any], Callable[[SlotPool, Any], None]]] = {
        Start: _start,
        Settle: _settle,
        Fork: _fork,
        Reclaim: _reclaim_and_dispatch,
        Kill: _kill,
    }

    def _reclaim(self, number: int) -> None:
        """Take back the tasks that a slot has not begun."""
        process, slot = self._processes.get(number), self.table.slots.get(number)
        if process is None or slot is None or slot.shared or not slot.tasks:
            return
        tasks = process.tickets.reclaim()
        for task in tasks:
            if pending := self._tasks.get(task):  # it may have been cancelled since
                pending.stop_timer()
                pending.began = 0.0
        self.table.reclaimed(number, tasks)

    def _begins(self, task: int) -> None:
        """From now on a task is taken to run in its slot."""
        pending = self._tasks[task]
        pending.began = now = self._loop.time()
        self._progress.began(now)
        timeout = pending.run.timeout
        if timeout is not None and pending.timer is None:
            pending.timer = self._loop.call_later(timeout, self._expire, task, timeout)

    def _expire(self, task: int, timeout: float) -> None:
        if task in self.table.running:
            self._reclaim(self.table.running[task].number)
        expired = self.table.expire(task, f"ran longer than its limit of {timeout:g} s")
        self._apply([*expired, *self.table.dispatch()])  # it may not have begun after all

    def _release(self, task: int) -> None:
        pending = self._tasks.pop(task)
        pending.stop_timer()
        if pending.run.blobs:
            self.blobs.release(task, pending.run.blobs.values())
        if self._code is not None:
            self._code.release(task)

    # --- messages of slots ---

    def _hear(self, number: int, received: Received) -> None:
        message = received.message
        handler = self._MESSAGES.get(type(message))
        if handler is None:
            raise ProtocolError(f"{type(message).__name__} from a slot")
        handler(self, number, self._processes[number], message, received.buffers)

    def _finished(self, number: int, process: SlotProcess, message: Done | Failed, buffers: Sequence[Buffer]) -> None:
        slot = self.table.running.get(message.task)
        wanted = slot is not None and slot.number == number
        if wanted:
            self._release(message.task)
        # First the next task, then the result of this one.
        self._apply(self.table.finished(number, message.task, message.seconds))
        process.output.flush(whole_lines=number in self.table.slots and bool(self.table.slots[number].tasks))
        if slot is not None and not slot.shared:
            for task in slot.current:
                self._begins(task)
        files = message.files.values() if isinstance(message, Done) else ()
        if wanted and self._held is not None:
            self._results.keep(files)
            self._held.hold(message.task, process.pid, lambda problem: self._answer_held(message, buffers, problem))
        elif wanted:
            posted = self._owner.answer([message.task], message, buffers, self.table.is_stocked)
            if files:
                self._results.sent(posted, files)
        elif files:
            remove(files)
        if self.table.is_supplied and not self._resting:
            self._resting = True
            self._loop.call_soon(self._rest)

    def _answer_held(self, message: Done | Failed, buffers: Sequence[Buffer], problem: str | None) -> None:
        """Tell the owner how a task has ended. `problem`: why something that was written is not saved."""
        if problem is not None and isinstance(message, Done):
            self._results.drop(message.files.values())
            unsaved = Failed(message.task, message.seconds, Failure.UNSAVED.value, problem)
            self._owner.answer([message.task], unsaved)
            return
        posted = self._owner.answer([message.task], message, buffers)
        if isinstance(message, Done) and message.files:
            self._results.sent(posted, message.files.values())

    def _slot_up(self, number: int, process: SlotProcess, message: Ready, _: Sequence[Buffer]) -> None:
        process.up = message.error is None
        self._warmed(number)
        slot = self.table.slots.get(number)
        if slot is not None and process.up:
            for task in slot.current:
                self._begins(task)
        if message.error is not None:
            self._reclaim(number)
            self._apply(self.table.refused(number, message.error))

    def _missing(self, number: int, process: SlotProcess, message: Missing, _: Sequence[Buffer]) -> None:
        """Kill a slot that lacks tasks which it should have."""
        if lost := self._progress.lost(number, process, message.tasks):
            self._give_up(number, f"it neither ran nor answered task {lost[0]}, which it was given, and was killed")

    _MESSAGES: ClassVar[dict[type[Any], Callable[[SlotPool, int, SlotProcess, Any, Sequence[Buffer]], None]]] = {
        Done: _finished,
        Failed: _finished,
        Ready: _slot_up,
        Missing: _missing,
    }

    def _rest(self) -> None:
        """Sleep a moment, since nothing is urgent while every slot has tasks ahead: several answers then come at once.

        Waking up costs more than handling an answer. A slot has tasks ahead for longer than this.
        """
        self._resting = False
        self._system.sleep(_REST)

    # --- the end of slots ---

    def _hung_up(self, number: int) -> None:
        """A slot has closed its connection: it is ending, or has closed its files and can't answer."""
        self._apply(self.table.retire(number))
        self._loop.call_later(_HUNG_UP, self._give_up, number, "it closed its connection to the agent, and was killed")

    def _give_up(self, number: int, reason: str) -> None:
        """Kill a slot that is no longer reliable, unless it has ended."""
        process = self._processes.get(number)
        if process is not None:
            process.lost = process.lost or reason
            self._fork_server.kill(number)

    def _refuse(self, number: int, detail: str) -> None:
        self._bury(number)
        self._apply(self.table.refused(number, detail))

    def _bury(self, number: int) -> SlotProcess | None:
        """Read what a dead slot sent last, and close its files."""
        process = self._processes.get(number)
        self._warmed(number)
        if process is not None:
            process.link.drain()
            if process.pid is not None:
                self._results.clear(process.pid)
            self._reclaim(number)
            process.close()
            del self._processes[number]
        return process

    # --- the fork server ---

    def _new_fork_server(self, server: ForkServerProcess | None = None, delay: float | None = None) -> ForkServerClient:
        start = self._system.start_server
        return ForkServerClient(self._loop, self._config, self._reported, self._fork_server_ended, server, delay, start)

    def _reported(self, what: int, number: int, value: int) -> None:
        """Handle a report of the fork server: what, slot, value."""
        self._REPORTS[what](self, number, value)

    def _forked(self, number: int, pid: int) -> None:
        if process := self._processes.get(number):
            process.pid = pid

    def _seated(self, number: int, seat: int) -> None:
        if process := self._processes.get(number):
            process.seat = seat

    def _exited(self, number: int, status: int) -> None:
        process = self._bury(number)
        peak = None if process is None else process.peak
        slots = self.setup.concurrency
        detail = exit_status.describe(status, self._oom.look(), peak, self._oom.limit(), slots)
        self._apply(self.table.died(number, (process and process.lost) or detail))

    def _killed(self, number: int, kilobytes: int) -> None:
        if process := self._processes.get(number):
            process.peak = kilobytes * 1024

    def _fork_failed(self, number: int, code: int) -> None:
        self._refuse(number, f"can't fork a slot: {os.strerror(code)}")

    def _fork_server_up(self, *_: int) -> None:
        self._restarts.up(self._loop.time())
        commands = self.table.warm(self.setup.isolated)
        self._warming = {command.slot for command in commands if isinstance(command, Fork)}
        self._apply(commands)
        self._warmed(None)

    _REPORTS: ClassVar[dict[int, Callable[[SlotPool, int, int], None]]] = {
        FORKED: _forked,
        SEATED: _seated,
        PEAK: _killed,
        EXITED: _exited,
        FAILED: _fork_failed,
        UP: _fork_server_up,
    }

    def _fork_server_ended(self, end: Ended) -> None:
        """The fork server has died, and all slots with it: replace it if that is likely to help."""
        delay = self._restarts.ended(end, self._loop.time(), self._announced)
        if end.hung and delay is not None:
            self._warn(f"on {self.setup.node} {end.description}; its workers are replaced")
        made = set()
        while self._processes:  # what one said last may have asked for another, which nobody makes any more
            number = next(iter(self._processes))
            if (process := self._bury(number)) is not None and process.up:
                made.add(number)
        self._apply(self.table.all_ended(made, end.description))
        if delay is not None:
            self._fork_server = self._new_fork_server(delay=delay)
            self._apply(self.table.dispatch())
        else:  # by now the owner has an answer for all tasks that had begun
            self._owner.post(Ready(0, end.description))
            self._apply(self.table.give_up(end.description))

    def _warmed(self, number: int | None) -> None:
        """A slot that was made ahead is up, or never will be; with the last of them, the node is ready.

        Forking takes time, which should not count as a task's.
        """
        self._warming.discard(number)
        if self._restarts.is_up and not self._warming and not self._announced:
            self._announced = True  # the owner need not know of replaced fork servers
            self._owner.post(Ready(self.setup.concurrency, None))

    # --- the owner ---

    def _warn(self, text: str) -> None:
        self._owner.print(2, f"skyward: {text}\n".encode())

    def _throttle(self) -> None:
        """Stop or resume reading what slots print and stream."""
        for process in self._processes.values():
            process.output.pause(self._owner.output_full)
        self._bridge.pause(self._owner.streams_full)


def allow_files(concurrency: int) -> None:
    """Raise this process's limit of open files to what that many slots need.

    Raises
    ------
    ValueError
        The system does not allow that many.
    """
    needed = _files(concurrency)
    limit = open_files.allow(needed + concurrency + _FILES_MORE)
    if limit < needed:
        fit = max(0, (limit - _FILES_AGENT) // _FILES_PER_SLOT)
        instead = f"or have at most {fit} slots on a node: Worker(concurrency={fit})" if fit else "or use another host"
        raise ValueError(
            f"{concurrency} slots need {needed} open files in one process, of which the system allows {limit} on this "
            f"node; have that limit raised (ulimit -Hn, limits.conf), {instead}"
        )


def _files(concurrency: int) -> int:
    return _FILES_AGENT + _FILES_PER_SLOT * concurrency

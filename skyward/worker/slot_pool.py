"""Runs a node's tasks: what an agent does with each message of its owner and of its slots.

Which task runs where is decided in slot_table.py, whose commands are carried out here. slot_processes.py makes slots
and buries them, task_needs.py knows what a task waits for, task_progress.py times tasks, and task_answers.py sends and
remembers answers. Everything here happens on the agent's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from skyward.core.errors import ProtocolError
from skyward.core.protocol.messages import (
    Began,
    Cancel,
    Done,
    Failed,
    Message,
    Missing,
    Ready,
    Recall,
    Returned,
    Run,
    Setup,
)
from skyward.core.protocol.wire import Buffer, Received
from skyward.core.system import open_files
from skyward.worker.agent_system import AgentSystem
from skyward.worker.bridge import Bridge
from skyward.worker.forkserver.client import fork_config
from skyward.worker.forkserver.launch import ForkServerProcess
from skyward.worker.owner_traffic import OwnerTraffic
from skyward.worker.result_files import UnclaimedFiles
from skyward.worker.slot_processes import SlotProcess, SlotProcesses
from skyward.worker.slot_table import Command, Fork, Kill, Reclaim, Settle, SlotTable, Start
from skyward.worker.task_answers import TaskAnswers
from skyward.worker.task_needs import TaskNeeds
from skyward.worker.task_progress import PendingTask, TaskProgress

__all__ = ["SlotPool", "allow_files"]

_REST = 0.0002  # seconds
_FILES_PER_SLOT = 5  # its socket, two pipes for what it prints, one for tickets
_FILES_AGENT = 24  # the agent's own, with a connection, and a slot that is being made
_FILES_MORE = 1024  # for blobs and streams, whose number is the agent's choice


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
        self._tasks: dict[int, PendingTask] = {}
        self._last_mark = 0
        self._resting = False
        self._owner = owner = OwnerTraffic(post, self._throttle)
        store = system.make_store((open_files.limit() - _files(setup.concurrency)) // 2)
        code = f"{folder}/code" if setup.code else None
        self.needs = TaskNeeds(store, code, owner.post, owner.warn, self._unblock, self._refuse)
        result_files = store.result_files() if setup.shares else None
        self.answers = TaskAnswers(post, UnclaimedFiles(result_files))
        self.bridge = Bridge(loop, f"{folder}/bridge.sock", owner.stream)
        places = {"bridge": self.bridge.path, "result_files": result_files, "code": code or ""}
        config = fork_config(setup, cores, places, own)
        try:
            self._processes = SlotProcesses(
                loop, setup, config, server, system, self.table, owner, self._hear, self._buried, self._apply
            )
        except BaseException:
            self.bridge.close()
            raise
        by_number, post_begun = self._processes.by_number, lambda *begun: owner.post(Began(*begun))
        self._progress = TaskProgress(loop, self.table, by_number, self._tasks, post_begun, self._expire)

    def __repr__(self) -> str:
        return f"<SlotPool of {self.setup.node!r}: {self.table!r}>"

    # --- messages of the owner ---

    def submit(self, run: Run, buffers: Sequence[Buffer]) -> None:
        """Take a task."""
        if run.task in self._tasks:
            return
        pending = self._tasks[run.task] = PendingTask(run, buffers)
        if run.blobs or run.code:
            pending.blocked = not self.needs.use(run)
        self._apply(self.table.submit(run.task, run.isolated, pending.blocked, run.since))
        if pending.blocked and (problem := self.needs.refusal(run)):
            self._refuse(run.task, problem)

    def _unblock(self, task: int) -> None:
        self._apply(self.table.unblock(task))

    def _refuse(self, task: int, detail: str) -> None:
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
        tasks = self.table.recall(request.limit, self.table.soon(request.within, self._progress.punctual()))
        for task in tasks:
            self._release(task)
        self.answers.post(tasks, Returned(tasks))
        self._apply(self.table.dispatch())

    def inquire(self, tasks: list[int]) -> None:
        """Report which of these tasks are not here; an answer may be on its way to the owner."""
        self._owner.post(Missing([task for task in tasks if task not in self._tasks and task not in self.answers]))

    def acknowledged(self, received: int) -> None:
        """The owner has everything up to this number, so what was held back may flow again."""
        self._owner.acknowledged(received)
        self.answers.acknowledged(received)

    async def end(self) -> None:
        """Let idle slots end in order, kill the others, and remove all files."""
        await self._processes.end()
        self.close()

    def close(self) -> None:
        """Kill all slots and remove all files, at once."""
        self._progress.close()
        self._processes.close()
        self.bridge.close()
        self.needs.blobs.store.close()

    # --- commands of the table ---

    def _apply(self, commands: list[Command]) -> None:
        if not commands:
            return
        for command in commands:
            self._COMMANDS[type(command)](self, command)
        for number in {command.slot for command in commands if type(command) is Start}:
            if process := self._processes.by_number.get(number):
                process.hand_over()

    def _start(self, command: Start) -> None:
        task, number = command
        process = self._processes.by_number.get(number)
        if process is None:
            return  # it could not be made; `SlotTable.refused` follows
        pending = self._tasks[task]
        run, buffers = pending.run, pending.buffers
        if run.blobs:
            run, buffers = self.needs.blobs.place(run, buffers)
        slot = self.table.slots[number]
        if not slot.shared:
            process.tickets.add(task)
        if process.up and (slot.shared or slot.first == task):
            self._progress.began(task)
        self._last_mark += 1
        pending.mark = self._last_mark
        process.link.queue(run, buffers)

    def _settle(self, command: Settle) -> None:
        pending = self._tasks[command.task]
        seconds = self._loop.time() - pending.began if pending.began else 0.0
        self._release(command.task)
        self.answers.post((command.task,), Failed(command.task, seconds, command.reason.value, command.detail))

    def _reclaim_and_dispatch(self, command: Reclaim) -> None:
        self._reclaim(command.slot)
        self._apply(self.table.dispatch())

    _COMMANDS: ClassVar[dict[type[Any], Callable[[SlotPool, Any], None]]] = {
        Start: _start,
        Settle: _settle,
        Fork: lambda self, command: self._processes.fork(command.slot, command.shared),
        Reclaim: _reclaim_and_dispatch,
        Kill: lambda self, command: self._processes.kill(command.slot),
    }

    def _reclaim(self, number: int) -> None:
        """Take back the tasks that a slot has not begun."""
        process, slot = self._processes.by_number.get(number), self.table.slots.get(number)
        if process is None or slot is None or slot.shared or not slot.tasks:
            return
        tasks = process.tickets.reclaim()
        self._progress.reclaimed(tasks)
        self.table.reclaimed(number, tasks)

    def _expire(self, task: int, timeout: float) -> None:
        if task in self.table.running:
            self._reclaim(self.table.running[task].number)
        expired = self.table.expire(task, f"ran longer than its limit of {timeout:g} s")
        self._apply([*expired, *self.table.dispatch()])  # it may not have begun after all

    def _release(self, task: int) -> None:
        pending = self._tasks.pop(task)
        pending.stop_timer()
        if pending.run.blobs or pending.blocked:
            self.needs.release(pending.run)

    # --- messages of slots ---

    def _hear(self, number: int, received: Received) -> None:
        message = received.message
        handler = self._MESSAGES.get(type(message))
        if handler is None:
            raise ProtocolError(f"{type(message).__name__} from a slot")
        handler(self, number, self._processes.by_number[number], message, received.buffers)

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
                self._progress.began(task)
        if wanted:
            self.answers.finish(message, buffers, process.pid, self.table.is_stocked)
        else:
            self.answers.discard(message)
        if self.table.is_supplied and not self._resting:
            self._resting = True
            self._loop.call_soon(self._rest)

    def _slot_up(self, number: int, _: SlotProcess, message: Ready, __: Sequence[Buffer]) -> None:
        self._processes.started(number, message.error is None)
        if message.error is not None:
            self._reclaim(number)
            self._apply(self.table.refused(number, message.error))
        elif slot := self.table.slots.get(number):
            for task in slot.current:
                self._progress.began(task)

    def _missing(self, number: int, process: SlotProcess, message: Missing, _: Sequence[Buffer]) -> None:
        """Kill a slot that lacks tasks which it should have."""
        if lost := self._progress.lost(number, process, message.tasks):
            reason = f"it neither ran nor answered task {lost[0]}, which it was given, and was killed"
            self._processes.kill(number, reason)

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

    def _buried(self, number: int, process: SlotProcess) -> None:
        """A slot has ended; nothing more comes of it."""
        if process.pid is not None:
            self.answers.files.clear(process.pid)
        self._reclaim(number)

    def _throttle(self) -> None:
        """Stop or resume reading what slots print and stream."""
        self._processes.pause(self._owner.output_full)
        self.bridge.pause(self._owner.streams_full)


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

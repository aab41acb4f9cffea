"""Which tasks have begun, for how long they have run, and whether their slots still have them.

What has begun is reported to the owner; the slots are asked what they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from skyward.core.protocol.messages import Inquire, Run
from skyward.core.protocol.wire import Buffer
from skyward.worker.slot_processes import SlotProcess
from skyward.worker.slot_table import SlotState, SlotTable

__all__ = ["PendingTask", "TaskProgress"]

_SOON = 0.05  # seconds from a task's beginning until it is reported, if it has not ended by then
_ROLL_CALL = 1.0  # seconds between two times that slots are asked which tasks they have
_LONG = 3  # times the mean: a task that has run for that long may run on for any time
_SHORT = 0.02  # seconds that a task may always run before it counts as long


class PendingTask:
    """A task that has not been answered."""

    __slots__ = ("began", "blocked", "buffers", "mark", "reported", "run", "timer")

    def __init__(self, run: Run, buffers: Sequence[Buffer]) -> None:
        self.run = run
        self.buffers = buffers
        self.blocked = False  # when it came: something that it needs was missing
        self.mark = 0  # a new number each time it is handed to a slot
        self.began = 0.0  # time of the loop at which it is taken to have begun; 0 before
        self.reported = False  # to the owner, as begun
        self.timer: asyncio.TimerHandle | None = None

    def stop_timer(self) -> None:
        """Stop counting its running time."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class TaskProgress:
    """Times tasks, and polls the slots while tasks run.

    Parameters
    ----------
    loop
        The agent's loop.
    table, processes, tasks
        Which task is in which slot, the slots' processes by number, and the unanswered tasks by number; all belong to
        the pool.
    report
        Called with the tasks that have begun since the last call, and the number of the slot of each, as in `Began`.
    expire
        Called with a task that has run for as long as it may, and with that limit in seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        table: SlotTable,
        processes: Mapping[int, SlotProcess],
        tasks: Mapping[int, PendingTask],
        report: Callable[[list[int], list[int]], object],
        expire: Callable[[int, float], object],
    ) -> None:
        self._loop = loop
        self._table = table
        self._processes = processes
        self._tasks = tasks
        self._report = report
        self._expire = expire
        self._timer: asyncio.TimerHandle | None = None
        self._last_roll_call = 0.0

    def __repr__(self) -> str:
        return f"<TaskProgress of {len(self._tasks)} tasks{', polling' if self._timer else ''}>"

    def began(self, task: int) -> None:
        """From now on a task is taken to run in its slot: time it, and poll soon."""
        pending = self._tasks[task]
        pending.began = now = self._loop.time()
        if self._timer is None or self._timer.when() > now + _SOON:
            self._poll_in(_SOON)
        timeout = pending.run.timeout
        if timeout is not None and pending.timer is None:
            pending.timer = self._loop.call_later(timeout, self._expire, task, timeout)

    def reclaimed(self, tasks: Iterable[int]) -> None:
        """Tasks that were taken to run had not begun after all."""
        for task in tasks:
            if pending := self._tasks.get(task):  # it may have been cancelled since
                pending.stop_timer()
                pending.began = 0.0

    def punctual(self) -> int:
        """How many slots run a task that has not taken longer than tasks usually do."""
        limit = self._loop.time() - max(_LONG * (self._table.mean or 0.0), _SHORT)
        return sum(self._tasks[task].began > limit for task in self._table.running)

    def close(self) -> None:
        """Stop polling."""
        if self._timer is not None:
            self._timer.cancel()

    def lost(self, number: int, process: SlotProcess, missing: list[int]) -> list[int]:
        """Return the tasks that a slot has lost.

        Parameters
        ----------
        number, process
            The slot.
        missing
            The tasks that it lacks, according to its answer to a roll call.
        """
        slot = self._table.slots.get(number)
        return process.roll.lost(missing, self._held(slot)) if slot is not None else []

    def _poll_in(self, seconds: float) -> None:
        self.close()
        self._timer = self._loop.call_later(seconds, self._poll)

    def _poll(self) -> None:
        self._timer = None
        begun: list[int] = []
        seats: list[int] = []
        now = self._loop.time()
        calls_roll = now >= self._last_roll_call + _ROLL_CALL
        for number, process in self._processes.items():
            slot = self._table.slots.get(number)
            if slot is None or not slot.tasks or not process.up:
                continue
            for task in self._begun(process, slot):
                pending = self._tasks[task]
                pending.reported = True
                pending.buffers = ()  # they are not needed again; the wire has what it still has to write
                begun.append(task)
                seats.append(process.seat)
            if calls_roll and (asked := process.roll.ask(self._held(slot))):
                process.link.send(Inquire(asked))
        if calls_roll:
            self._last_roll_call = now
        if begun:
            self._report(begun, seats)
        if self._table.running:
            self._poll_in(_ROLL_CALL)

    def _begun(self, process: SlotProcess, slot: SlotState) -> list[int]:
        """The tasks of a slot that have begun and have not been reported."""
        new = [task for task in slot.current if not self._tasks[task].reported]
        return new if slot.shared or (new and len(slot.tasks) > process.tickets.undrawn) else []

    def _held(self, slot: SlotState) -> dict[int, int]:
        """The tasks that a slot should have, with their marks, as `RollCall` needs them."""
        return {task: self._tasks[task].mark for task in slot.live}

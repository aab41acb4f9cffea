"""Which tasks have begun, and whether their slots still have them: reported to the owner, and asked of the slots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from skyward.core.protocol.messages import Inquire
from skyward.worker.slot_process import PendingTask, SlotProcess
from skyward.worker.slot_table import Slot, SlotTable

__all__ = ["TaskProgress"]

_SOON = 0.05  # seconds from a task's beginning until it is reported, if it has not ended by then
_ROLL_CALL = 1.0  # seconds between two times that slots are asked which tasks they have


class TaskProgress:
    """Polls the slots while tasks run.

    Parameters
    ----------
    loop
        The agent's loop.
    table, processes, tasks
        Which task is in which slot, the slots' processes by number, and the unanswered tasks by number; all belong to
        the pool.
    report
        Called with the tasks that have begun since the last call, and the number of the slot of each, as in `Began`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        table: SlotTable,
        processes: Mapping[int, SlotProcess],
        tasks: Mapping[int, PendingTask],
        report: Callable[[list[int], list[int]], object],
    ) -> None:
        self._loop = loop
        self._table = table
        self._processes = processes
        self._tasks = tasks
        self._report = report
        self._timer: asyncio.TimerHandle | None = None
        self._last_roll_call = 0.0

    def __repr__(self) -> str:
        return f"<TaskProgress of {len(self._tasks)} tasks{', polling' if self._timer else ''}>"

    def began(self, now: float) -> None:
        """Poll soon: a task is taken to have begun at this time of the loop."""
        if self._timer is None or self._timer.when() > now + _SOON:
            self._poll_in(_SOON)

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

    def _begun(self, process: SlotProcess, slot: Slot) -> list[int]:
        """The tasks of a slot that have begun and have not been reported."""
        new = [task for task in slot.current if not self._tasks[task].reported]
        return new if slot.shared or (new and len(slot.tasks) > process.tickets.undrawn) else []

    def _held(self, slot: Slot) -> dict[int, int]:
        """The tasks that a slot should have, with their marks, as `RollCall` needs them."""
        return {task: self._tasks[task].mark for task in slot.live}

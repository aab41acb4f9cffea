"""Which task runs in which slot process: the rules, and nothing else.

`Table` is told what happened (a task came, a process died, ...) and returns what must be done. It has no socket,
process, clock or log in it. A *slot* here is a process: an isolated one runs one task at a time, the shared one runs
several in threads. A slot that must not be used again is *retired*: it gets no new task, and is killed when the tasks
in it that somebody still waits for have ended.

Processes are made on demand only, so one that dies at its start can't make an endless row of forks.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from skyward.core.messages import Failure

__all__ = ["Command", "Fork", "Kill", "Settle", "Slot", "Start", "Table"]

_REMEMBERED = 4096  # cancels of tasks that have not come yet


class Fork(NamedTuple):
    """Make a process for this slot. Tasks may be started in it at once: its socket holds them."""

    slot: int
    shared: bool


class Start(NamedTuple):
    """Send a task to its slot."""

    task: int
    slot: int


class Kill(NamedTuple):
    """End the slot's process, and all that it started, now. `died` is expected afterwards."""

    slot: int


class Settle(NamedTuple):
    """Tell the owner that the task did not return. Said once for a task, and never for one that finished."""

    task: int
    reason: Failure
    detail: str


Command = Union[Fork, Start, Kill, Settle]


@dataclass(slots=True)
class Slot:
    """One process. `tasks` are those that run in it; `live` those of them that somebody waits for."""

    number: int
    shared: bool
    retired: bool = False
    tasks: set[int] = field(default_factory=set)
    live: set[int] = field(default_factory=set)


class Table:
    """Tasks that wait, slots, and what runs where.

    Parameters
    ----------
    concurrency
        Tasks at a time, isolated and shared ones together.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.slots: dict[int, Slot] = {}
        self.running: dict[int, Slot] = {}
        """Where each task runs that somebody waits for."""
        self._ready: OrderedDict[int, bool] = OrderedDict()  # task -> isolated, first come first served
        self._blocked: dict[int, bool] = {}  # those whose blobs have not all come
        self._cancelled: OrderedDict[int, None] = OrderedDict()
        self._idle: dict[int, Slot] = {}  # isolated slots without a task; the last used is used first
        self._shared: Slot | None = None
        self._last = 0

    def __repr__(self) -> str:
        waiting = len(self._ready) + len(self._blocked)
        return f"<Table {len(self.running)}/{self.concurrency} running, {waiting} waiting, {len(self.slots)} slots>"

    @property
    def is_stocked(self) -> bool:
        """Whether there is work for a while, should nothing come from the owner."""
        return len(self._ready) > 2 * self.concurrency

    # --- what happens ---

    def warm(self, isolated: bool) -> list[Command]:
        """Make the processes ahead of the first task."""
        if not isolated:
            return [] if self._shared else [Fork(self._add(shared=True).number, True)]
        have = sum(not slot.shared and not slot.retired for slot in self.slots.values())
        new = [self._add(shared=False) for _ in range(self.concurrency - have)]
        self._idle.update((slot.number, slot) for slot in new)
        return [Fork(slot.number, False) for slot in new]

    def submit(self, task: int, isolated: bool, blocked: bool = False) -> list[Command]:
        """A task came; `blocked` while something that it needs is not there. One that is known is not taken twice."""
        if task in self._cancelled:
            del self._cancelled[task]
            return [Settle(task, Failure.CANCELLED, "cancelled before it came")]
        if self.waits(task) or task in self.running:
            return []
        if blocked:
            self._blocked[task] = isolated
            return []
        self._ready[task] = isolated
        return self._dispatch()

    def unblock(self, task: int) -> list[Command]:
        """All that the task needs is there."""
        if task not in self._blocked:
            return []
        self._ready[task] = self._blocked.pop(task)
        return self._dispatch()

    def waits(self, task: int) -> bool:
        """Whether the task is here and has not started."""
        return task in self._ready or task in self._blocked

    def cancel(self, task: int) -> list[Command]:
        """The owner does not want the task any more. Remembered if the task has not come yet."""
        if self.waits(task):
            self._ready.pop(task, None)
            self._blocked.pop(task, None)
            return [Settle(task, Failure.CANCELLED, "cancelled while it waited")]
        if task in self.running:
            return self._abandon(task, Failure.CANCELLED, "cancelled while it ran")
        self._cancelled[task] = None
        if len(self._cancelled) > _REMEMBERED:
            self._cancelled.popitem(last=False)
        return []

    def expire(self, task: int, detail: str) -> list[Command]:
        """The task has run for longer than its limit."""
        return self._abandon(task, Failure.TIMEOUT, detail) if task in self.running else []

    def finished(self, number: int, task: int) -> list[Command]:
        """The slot has answered for the task (whether anybody waits for it is in `running`)."""
        slot = self.slots.get(number)
        if slot is None or task not in slot.tasks:
            return []
        slot.tasks.discard(task)
        if task in slot.live:
            slot.live.discard(task)
            del self.running[task]
        if slot.retired:
            return [*self._kill_if_useless(slot), *self._dispatch()]
        if not slot.shared:
            self._idle[number] = slot
        return self._dispatch() if self._ready else []

    def retire(self, number: int) -> list[Command]:
        """The slot can't be used any more (its socket is closed), though its process may live."""
        slot = self.slots.get(number)
        if slot is None or slot.retired:
            return []
        self._retire(slot)
        return self._kill_if_useless(slot)

    def died(self, number: int, detail: str) -> list[Command]:
        """The slot's process has ended, and all that it had sent was told before."""
        slot = self.slots.get(number)
        reason = Failure.CRASHED if slot is None or len(slot.tasks) == 1 else Failure.SHARED_CRASH
        return self._remove(number, reason, detail)

    def refused(self, number: int, detail: str) -> list[Command]:
        """The slot's process could not be made, or could not begin."""
        return self._remove(number, Failure.REFUSED, detail)

    # --- rules ---

    def _add(self, shared: bool) -> Slot:
        self._last += 1
        slot = self.slots[self._last] = Slot(self._last, shared)
        if shared:
            self._shared = slot
        return slot

    def _dispatch(self) -> list[Command]:
        commands: list[Command] = []
        while self._ready and len(self.running) < self.concurrency:
            task, isolated = self._ready.popitem(last=False)
            slot = self._shared
            if isolated:
                slot = self._idle.popitem()[1] if self._idle else None
            if slot is None:
                slot = self._add(shared=not isolated)
                commands.append(Fork(slot.number, slot.shared))
            slot.tasks.add(task)
            slot.live.add(task)
            self.running[task] = slot
            commands.append(Start(task, slot.number))
        return commands

    def _abandon(self, task: int, reason: Failure, detail: str) -> list[Command]:
        """Nobody waits for a running task any more; a thread can't be stopped, so its whole process is given up."""
        slot = self.running.pop(task)
        slot.live.discard(task)
        self._retire(slot)
        return [Settle(task, reason, detail), *self._kill_if_useless(slot), *self._dispatch()]

    def _retire(self, slot: Slot) -> None:
        slot.retired = True
        self._idle.pop(slot.number, None)
        if self._shared is slot:
            self._shared = None

    def _kill_if_useless(self, slot: Slot) -> list[Command]:
        return [] if slot.live else [Kill(slot.number)]

    def _remove(self, number: int, reason: Failure, detail: str) -> list[Command]:
        slot = self.slots.pop(number, None)
        if slot is None:
            return []
        self._retire(slot)
        for task in slot.live:
            del self.running[task]
        return [*(Settle(task, reason, detail) for task in sorted(slot.live)), *self._dispatch()]

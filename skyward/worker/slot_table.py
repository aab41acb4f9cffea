"""Which task runs in which slot process. Pure.

Methods of `SlotTable` report what happened (a task arrived, a process died, ...) and return what must be done. It uses
no socket, process, clock or log. A *slot* here is a process: an isolated one runs one task at a time, the shared one
runs several in threads. A slot that must not be used again is *retired*: it gets no new task, and is killed when the
tasks in it that somebody still waits for have ended.

A task may name a version of the user's code, or rather the first of several that differ by added modules only. A slot
takes that of its first such task, and gets no task of another: an idle slot is replaced where only such a task waits.

While tasks are so short that the hand-over matters, isolated slots hold some tasks *ahead*. Those that have not begun
can be reclaimed (`Reclaim`), so no task waits behind a long one while another slot is free. The slot's tasks must be
reclaimed before any event is reported other than `finished`: only then is it known which task a cancellation, a time
limit or a death concerns, and whether the slot has begun any.

Processes are made on demand only. When several in a row die before they have begun a task, each further death refuses a
task, so that processes that can't live are not forked forever.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from skyward.core.protocol.messages import Failure

__all__ = ["Command", "Fork", "Kill", "Reclaim", "Settle", "SlotState", "SlotTable", "Start"]

_REMEMBERED = 4096  # cancellations of tasks that have not arrived yet
_STILLBORN = 3  # deaths in a row of processes that had tasks and never began one, until tasks are refused
_MAX_DEPTH = 8  # tasks that a slot holds ahead
_MAX_AHEAD = 0.002  # seconds for which the tasks ahead would run
_ONE_AHEAD = 0.2  # seconds; of shorter tasks a slot holds at least one ahead, to avoid a pause between two tasks
_SMOOTH = 0.2  # weight of the latest running time in the mean


class Fork(NamedTuple):
    """Make a process for this slot. Tasks may be started in it at once: its socket buffers them."""

    slot: int
    shared: bool


class Start(NamedTuple):
    """Send a task to its slot."""

    task: int
    slot: int


class Reclaim(NamedTuple):
    """Take back the tasks that the slot has not begun, report them to `reclaimed`, and then `dispatch`."""

    slot: int


class Kill(NamedTuple):
    """Kill the slot's process, and all that it started, at once. `died` follows."""

    slot: int


class Settle(NamedTuple):
    """Report to the owner that the task did not return. Once per task, and never for one that finished."""

    task: int
    reason: Failure
    detail: str


Command = Union[Fork, Start, Reclaim, Kill, Settle]


@dataclass(slots=True)
class SlotState:
    """One process. `tasks` are those handed to it, oldest first; `live` are those of them that somebody waits for."""

    number: int
    shared: bool
    retired: bool = False
    bare: bool = False  # its tasks ahead were reclaimed, and it has been given none since
    fresh: bool = True  # it has never finished a task
    given: bool = False  # it was handed one
    code: int = 0  # version of the code that it has; 0 for none yet
    tasks: dict[int, None] = field(default_factory=dict)
    live: set[int] = field(default_factory=set)

    @property
    def first(self) -> int | None:
        """The task that an isolated slot runs, as far as known; those after it are ahead."""
        return next(iter(self.tasks), None)

    @property
    def is_stillborn(self) -> bool:
        """Whether it never began a task that it was handed, if it has died now."""
        return self.given and self.fresh and not self.tasks

    @property
    def current(self) -> list[int]:
        """The tasks that it runs, as far as known, and that somebody waits for."""
        return [task for task in self.tasks if task in self.live and (self.shared or task == self.first)]

    @property
    def ahead(self) -> int:
        """How many of its tasks have not begun, as far as known."""
        return 0 if self.shared or not self.tasks else len(self.tasks) - 1


_Need = tuple[bool, int]
"""What a task needs: whether a process of its own, and which version of the code."""


def _fits(slot: SlotState, code: int) -> bool:
    """Whether a slot can run a task of that version."""
    return slot.code == code or not slot.code or not code


class SlotTable:
    """Waiting tasks, slots, and which task runs where.

    Parameters
    ----------
    concurrency
        Number of tasks at once, isolated and shared ones together.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.slots: dict[int, SlotState] = {}
        self.running: dict[int, SlotState] = {}
        """The slot of each task that was handed over and that somebody waits for."""
        self._ready: OrderedDict[int, _Need] = OrderedDict()  # task -> what it needs, first come first served
        self._blocked: dict[int, _Need] = {}  # tasks that lack some of their blobs, or their code
        self._cancelled: OrderedDict[int, None] = OrderedDict()
        self._idle: dict[int, SlotState] = {}  # isolated slots without a task; the last used is used first
        self._shared: SlotState | None = None
        self._last = 0
        self._ahead = 0  # of all slots together
        self.mean: float | None = None
        """Smoothed running time of tasks, seconds."""
        self._depth = 0  # how many tasks a slot should hold ahead
        self._stillborn = 0  # in a row
        self._closed: str | None = None  # why no process can be made any longer

    def __repr__(self) -> str:
        waiting = len(self._ready) + len(self._blocked) + self._ahead
        running = f"{len(self.running) - self._ahead}/{self.concurrency}"
        return f"<SlotTable {running} running, {waiting} waiting, {len(self.slots)} slots>"

    @property
    def is_stocked(self) -> bool:
        """Whether there is work for a while even if nothing arrives from the owner."""
        return len(self._ready) + self._ahead > 2 * self.concurrency

    @property
    def is_supplied(self) -> bool:
        """Whether slots hold so many tasks ahead that none of them will be idle soon."""
        return self._ahead > 3 * self.concurrency

    # --- events ---

    def warm(self, isolated: bool) -> list[Command]:
        """Make processes before the first task arrives."""
        if not isolated:
            return [] if self._shared else [Fork(self._add(shared=True).number, True)]
        have = sum(not slot.shared and not slot.retired for slot in self.slots.values())
        new = [self._add(shared=False) for _ in range(self.concurrency - have)]
        self._idle.update((slot.number, slot) for slot in new)
        return [Fork(slot.number, False) for slot in new]

    def submit(self, task: int, isolated: bool, blocked: bool = False, code: int = 0) -> list[Command]:
        """A task has arrived. No effect if it is known.

        Parameters
        ----------
        task
            Its number.
        isolated
            Whether it needs a process of its own.
        blocked
            Whether something that it needs has not arrived.
        code
            The version of the code that its slot must have; 0 for any.
        """
        if task in self._cancelled:
            del self._cancelled[task]
            return [Settle(task, Failure.CANCELLED, "cancelled before it arrived")]
        if self.waits(task) or task in self.running:
            return []
        if blocked and self._closed is None:
            self._blocked[task] = isolated, code
            return []
        self._ready[task] = isolated, code
        return self.dispatch()

    def unblock(self, task: int) -> list[Command]:
        """Everything that the task needs has arrived."""
        if task not in self._blocked:
            return []
        self._ready[task] = self._blocked.pop(task)
        return self.dispatch()

    def refuse(self, task: int, detail: str) -> list[Command]:
        """Something that the task needs will not arrive."""
        return [] if self._blocked.pop(task, None) is None else [Settle(task, Failure.REFUSED, detail)]

    def waits(self, task: int) -> bool:
        """Whether the task is here and was not handed to a slot."""
        return task in self._ready or task in self._blocked

    def cancel(self, task: int) -> list[Command]:
        """The owner cancels the task; remembered if the task has not arrived yet."""
        if self.waits(task):
            self._ready.pop(task, None)
            self._blocked.pop(task, None)
            return [Settle(task, Failure.CANCELLED, "cancelled while it waited"), *self.dispatch()]
        if task in self.running:
            return self._abandon(task, Failure.CANCELLED, "cancelled while it ran")
        self._cancelled[task] = None
        if len(self._cancelled) > _REMEMBERED:
            self._cancelled.popitem(last=False)
        return []

    def expire(self, task: int, detail: str) -> list[Command]:
        """The task has exceeded its time limit."""
        return self._abandon(task, Failure.TIMEOUT, detail) if task in self.running else []

    def finished(self, number: int, task: int, seconds: float | None = None) -> list[Command]:
        """A slot has answered a task, which is in `running` if somebody waits for it.

        Parameters
        ----------
        number, task
            Which slot, and which task.
        seconds
            How long the task ran, if known.
        """
        slot = self.slots.get(number)
        if slot is None or task not in slot.tasks:
            return []
        self._take(slot, task)
        slot.fresh, self._stillborn = False, 0
        if task in slot.live:
            slot.live.discard(task)
            del self.running[task]
        if slot.retired:
            return [*self._kill_if_useless(slot), *self.dispatch()]
        if seconds is not None:
            self._learn(seconds)
        if slot.shared:
            return self.dispatch()
        if not slot.tasks:
            self._idle[number] = slot
        elif len(slot.tasks) > 1 + self._depth // 2:
            return []
        commands = self.dispatch()
        self._stock(slot, commands)
        return commands

    def reclaimed(self, number: int, tasks: list[int]) -> None:
        """These tasks of the slot, oldest first, were taken back: they wait again, before all others. See `Reclaim`."""
        slot = self.slots[number]
        slot.bare = True
        for task in reversed(tasks):
            if task in slot.live:
                self._take(slot, task)
                slot.live.discard(task)
                del self.running[task]
                self._ready[task] = True, slot.code
                self._ready.move_to_end(task, last=False)
        if not slot.tasks and not slot.retired:
            self._idle[number] = slot

    def recall(self, count: int, keep: int = 0) -> list[int]:
        """Remove and return up to `count` waiting tasks for another node, newest first, but not the `keep` oldest."""
        return [self._ready.popitem()[0] for _ in range(min(count, len(self._ready) - keep))]

    def soon(self, seconds: float, slots: int) -> int:
        """Estimate how many waiting tasks that number of slots will begin within this many seconds.

        A running task has half its time ahead on average, so a slot begins its first task after half the mean. One that
        was kept in any case would wait behind a long task while another node is idle.
        """
        return math.floor(slots * seconds / max(self.mean or seconds, 1e-6) + 0.5)

    def retire(self, number: int) -> list[Command]:
        """The slot can no longer be used, as its socket is closed, though its process may live."""
        slot = self.slots.get(number)
        if slot is None or slot.retired:
            return []
        self._retire(slot)
        return [*self._kill_if_useless(slot), *self.dispatch()]

    def died(self, number: int, detail: str) -> list[Command]:
        """The slot's process has ended, and all that it had sent was reported before."""
        slot = self.slots.get(number)
        reason = Failure.CRASHED if slot is None or len(slot.tasks) == 1 else Failure.SHARED_CRASH
        if slot is not None and slot.is_stillborn:
            self._stillborn += 1
            if self._stillborn >= _STILLBORN:
                return [*self._refuse_next(detail), *self._remove(number, reason, detail)]
        return self._remove(number, reason, detail)

    def refused(self, number: int, detail: str) -> list[Command]:
        """The slot's process could not be made or started; its tasks may have been reclaimed."""
        slot = self.slots.get(number)
        refused = self._refuse_next(detail) if slot is not None and slot.is_stillborn else []
        return [*refused, *self._remove(number, Failure.REFUSED, detail)]

    def all_ended(self, made: Container[int], detail: str) -> list[Command]:
        """All processes have ended, and all that they had sent was reported before; `dispatch` must follow.

        Those in `made` died. The others were never started: their tasks wait again, before all others.
        """
        commands: list[Command] = []
        for number, slot in reversed(list(self.slots.items())):
            for task in [] if number in made else reversed([task for task in slot.tasks if task in slot.live]):
                del self.running[task]
                self._ready[task] = not slot.shared, slot.code
                self._ready.move_to_end(task, last=False)
            if number not in made:
                slot.live.clear()
            reason = Failure.CRASHED if len(slot.tasks) == 1 else Failure.SHARED_CRASH
            commands += self._drop(slot, reason, detail)
        return commands

    def give_up(self, detail: str) -> list[Command]:
        """No process can be made any longer: waiting tasks and those that arrive later are refused."""
        self._closed = detail
        self._ready.update(self._blocked)
        self._blocked.clear()
        return self.dispatch()

    # --- rules ---

    def _refuse_next(self, detail: str) -> list[Command]:
        """Refuse the task that would start next, since processes for it don't live."""
        return [Settle(self._ready.popitem(last=False)[0], Failure.REFUSED, detail)] if self._ready else []

    def _add(self, shared: bool) -> SlotState:
        self._last += 1
        slot = self.slots[self._last] = SlotState(self._last, shared)
        if shared:
            self._shared = slot
        return slot

    def dispatch(self) -> list[Command]:
        """Start what can be started; if there is room but nothing waits, reclaim tasks that a slot holds ahead."""
        commands: list[Command] = []
        if self._closed is not None:
            commands += (Settle(task, Failure.REFUSED, self._closed) for task in self._ready)
            self._ready.clear()
        while self._ready and len(self.running) - self._ahead < self.concurrency:
            task, (isolated, code) = self._ready.popitem(last=False)
            slot = self._idle_slot(code, commands) if isolated else self._shared_slot(code, commands)
            if slot is None:
                slot = self._add(shared=not isolated)
                commands.append(Fork(slot.number, slot.shared))
            self._give(slot, task, code, commands)
        if self._ahead and not self._ready and len(self.running) - self._ahead < self.concurrency:
            fullest = max(self.slots.values(), key=lambda slot: -1 if slot.bare else slot.ahead)
            if fullest.ahead and not fullest.bare:
                commands.append(Reclaim(fullest.number))
        return commands

    def _stock(self, slot: SlotState, commands: list[Command]) -> None:
        """Hand tasks ahead to a busy slot."""
        while slot.tasks and slot.ahead < self._depth and self._ready:
            isolated, code = next(iter(self._ready.values()))
            if not isolated or not _fits(slot, code):
                return
            self._give(slot, self._ready.popitem(last=False)[0], code, commands)
            slot.bare = False

    def _learn(self, seconds: float) -> None:
        self.mean = seconds if self.mean is None else self.mean + _SMOOTH * (seconds - self.mean)
        self._depth = min(_MAX_DEPTH, max(int(_MAX_AHEAD / max(self.mean, 1e-6)), int(self.mean < _ONE_AHEAD)))

    def _idle_slot(self, code: int, commands: list[Command]) -> SlotState | None:
        """Take the idle slot that was used last and has that code; None if one is to be made, perhaps in its place."""
        if not self._idle:
            return None
        number, slot = self._idle.popitem()
        if _fits(slot, code):
            return slot
        other = next((other for other in reversed(self._idle.values()) if _fits(other, code)), None)
        if other is None:
            self._retire(slot)
            commands += self._kill_if_useless(slot)
            return None
        self._idle[number] = slot
        return self._idle.pop(other.number)

    def _shared_slot(self, code: int, commands: list[Command]) -> SlotState | None:
        slot = self._shared
        if slot is None or _fits(slot, code):
            return slot
        self._retire(slot)
        commands += self._kill_if_useless(slot)
        return None

    def _give(self, slot: SlotState, task: int, code: int, commands: list[Command]) -> None:
        self._ahead -= slot.ahead
        slot.code = slot.code or code
        slot.tasks[task] = None
        slot.given = True
        self._ahead += slot.ahead
        slot.live.add(task)
        self.running[task] = slot
        commands.append(Start(task, slot.number))

    def _take(self, slot: SlotState, task: int) -> None:
        self._ahead -= slot.ahead
        del slot.tasks[task]
        self._ahead += slot.ahead

    def _abandon(self, task: int, reason: Failure, detail: str) -> list[Command]:
        """Stop waiting for a running task; a thread can't be stopped, so its whole process is retired."""
        slot = self.running.pop(task)
        slot.live.discard(task)
        self._retire(slot)
        return [Settle(task, reason, detail), *self._kill_if_useless(slot), *self.dispatch()]

    def _retire(self, slot: SlotState) -> None:
        slot.retired = True
        self._idle.pop(slot.number, None)
        if self._shared is slot:
            self._shared = None

    def _kill_if_useless(self, slot: SlotState) -> list[Command]:
        return [] if slot.live else [Kill(slot.number)]

    def _remove(self, number: int, reason: Failure, detail: str) -> list[Command]:
        slot = self.slots.get(number)
        return [] if slot is None else [*self._drop(slot, reason, detail), *self.dispatch()]

    def _drop(self, slot: SlotState, reason: Failure, detail: str) -> list[Settle]:
        del self.slots[slot.number]
        self._retire(slot)
        self._ahead -= slot.ahead
        for task in slot.live:
            del self.running[task]
        return [Settle(task, reason, detail) for task in sorted(slot.live)]

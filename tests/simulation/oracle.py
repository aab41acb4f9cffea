"""What must hold, whatever happens: each task settles once and rightly, and no slot idles while a task waits."""

from __future__ import annotations

import concurrent.futures
import math
import traceback
from collections import Counter
from collections.abc import Collection
from typing import Any

from skyward.core.errors import (
    BudgetExceeded,
    NodeLost,
    PayloadError,
    SkywardError,
    TaskTimeout,
    VolumeFailed,
    WorkerCrashed,
)
from skyward.core.events import NodeGone, NodeReady, Note
from skyward.core.payload.exceptions import traceback_text
from tests.simulation.cards import LostCard
from tests.simulation.load import Array, Imported, Load, carry_out
from tests.simulation.odd import is_odd
from tests.simulation.scenario import Scenario, Wish
from tests.simulation.world import World

__all__ = ["Oracle", "argument", "items"]

_LOOK = 0.5  # seconds between two looks at idle slots
_IDLE = 5.0  # seconds, in addition to some round trips and the time in which all bytes of the load are sent


def argument(size: int) -> Array:
    """A large argument of a task: see `Wish`."""
    return Array.made(size, noise=size % 2 == 1)


def items(wish: Wish) -> list[int]:
    """What tells the calls of a batch apart; two of them are equal."""
    return [call // 2 for call in range(wish.count)]


def _bytes_of(scenario: Scenario) -> int:
    sent = sum(
        max(wish.count, 1) * wish.size + wish.prints + 4 * wish.talks + sum(wish.arrays) for wish in scenario.wishes
    )
    return sent + scenario.nodes[1] * (sum(edit.size for edit in scenario.edits) + sum(scenario.folder))


class Oracle:
    """Watches a pool; what must hold and does not is added to the world's list of what is broken.

    Parameters
    ----------
    world
        Where the pool is.
    scenario
        What it is to do.
    """

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world = world
        self.wishes: dict[int, Wish] = {}
        self._futures: dict[int, Any] = {}
        self.cancelled: set[int] = set()
        self.settled: set[int] = set()
        self.starts: Counter[int] = Counter()
        self.faults = 0
        """How many faults there have been that a task, or the pool, may fail of."""
        self.lost_cards = self.lies = self.forgets = self.gaps = self.slips = self.refused_packages = 0
        """How many GPUs are lost; how many times an agent has lied; how many tasks slots may forget: one that is ended
        for it may have begun the next; how many times a transport, or code of our own, has raised what it should not;
        how many times a package could not be installed."""
        self.kept: dict[int, Any] = {}
        """Results of cached functions, by the first task of those that are equal."""
        self.pinned: dict[int, str] = {}
        """The machine that a task must run on."""
        self.texts: dict[int, set[str]] = {}
        """What the user's module may say in a task that refers to one."""
        self.handed: set[int] = set()
        """Tasks whose results the program's run before has been given, and were stored in a file."""
        self.stored: set[int] = set()  # the same of this run
        self.is_file_away = self.was_file_away = False
        """Whether that file is gone for the moment, or was."""
        self.saved: set[int] = set()
        """Tasks whose files are saved."""
        self.is_over = False
        """Whether the driver was killed: nobody is there any more to whom anything was promised."""
        self._running: dict[int, str] = {}  # task -> the machine
        self._saves = scenario.saves
        self._has_budget = scenario.budget is not None and scenario.rented
        self._machines: set[str] = set()  # all that ever ran a task
        self._limits = scenario.limits
        self._wanted = {wish.number: wish for wish in scenario.wishes}
        # Groups in which no process dies and no thread works on after its time: it is known when their tasks run.
        wild = {
            wish.group
            for wish in scenario.wishes
            if wish.end in ("die", "hang") or (wish.timeout and not wish.isolated)
        }
        self._calm = {wish.group for wish in scenario.wishes} - wild
        self._slots: dict[str, int] = {}  # of the nodes that are ready
        self._lost = 0  # nodes that were given up: they may live on, and begin what they were given
        self._busy = 0.0  # when no slot was idle for the last time, no task waited, or one was started
        self._patience = _IDLE + 40 * scenario.latency + _bytes_of(scenario) / scenario.rate

    def _check(self, holds: object, text: str) -> None:
        if not holds and not self.is_over:
            self.world.tell(f"WRONG: {text}")
            self.world.broken.append(text)

    def follows(self, before: Oracle, unchanged: set[int]) -> None:
        """Take note that the program has run before, and which of its tasks are the same as then."""
        self.handed = before.stored & unchanged
        self.saved = set(before.saved)

    # --- nodes ---

    def heard(self, event: Note | NodeReady | NodeGone) -> None:
        """Take note of what the pool reports."""
        if isinstance(event, Note):
            unkept = event.warning and "program.results" in event.text
            self._check(not unkept or self.was_file_away, f"results are not stored: {event.text}")
        elif isinstance(event, NodeReady):
            self._slots[event.node] = event.slots
        elif isinstance(event, NodeGone):
            self._slots.pop(event.node, None)
            self._lost += event.reason is not None

    def watch(self) -> None:
        """Look now and then whether a slot idles while a task waits, as long as nothing goes wrong."""
        for number in self._running.keys() & self.settled - {wish.same for wish in self.wishes.values()}:
            del self._running[number]
        waiting = [
            wish
            for number, wish in self.wishes.items()
            # One that equals others waits for them, and a node for what must run there.
            if number not in self._running
            and number not in self.settled
            and wish.same is None
            and number not in self.pinned
        ]
        idle = sum(self._slots.values()) - len(self._running)
        if idle <= 0 or not any(len(self._running_of(wish.group)) < self._limit(wish.group) for wish in waiting):
            self._busy = self.world.now
        seconds = self.world.now - self._busy
        if not self.faults and not any(wish.end == "lacks" for wish in self.wishes.values()):  # held back meanwhile
            self._check(seconds <= self._patience, f"a slot has been idle for {seconds:g} s while a task waits")
            self.world.after(_LOOK, self.watch)

    def _limit(self, group: int | None) -> float:
        """How many tasks of a group may run at a time."""
        limit = None if group is None else self._limits[group]
        if limit is None:
            return math.inf
        return limit if limit >= 0 else max(sum(self._slots.values()) + limit, 1)

    def _running_of(self, group: int | None) -> set[int]:
        return {number for number in self._running if self._wanted[number].group == group}

    # --- tasks ---

    def submitted(self, wish: Wish, future: Any) -> None:
        """Take note of a task that the user submitted."""
        self._futures[wish.number] = future
        future.add_done_callback(lambda future: self._settles(wish, future))

    def started(self, where: str, load: Load) -> None:
        """Take note that a slot begins a task."""
        number, wish = load.number, self._wanted[load.number]
        self.starts[number] += 1
        machine = where.partition("/")[0]
        self._machines.add(machine)
        self._begins(number, machine, wish)
        self._running[number] = machine
        self._busy = self.world.now
        if wish.group in self._calm and not self.faults:
            # Those for one node have their turn there, whatever the group's limit is.
            running = len(self._running_of(wish.group) - self.settled - self.pinned.keys())
            self._check(running <= self._limit(wish.group), f"{running} tasks of group {wish.group} run at a time")
        self.world.tell(f"task {number} starts in {where}")
        # Who killed a process that several tasks shared, or that forgot one and went on, is not known: that start does
        # not count, once. Nor does one on a machine that is given up for money.
        most = wish.attempts + (wish.attempts > 1 and (not wish.isolated or self.forgets > 0))
        most += len(self._machines) if self._has_budget or self.lies else 0  # or has said that nothing had begun
        if wish.same is not None:
            most = sum(each.attempts + 1 for each in self.wishes.values() if each.same == wish.same)
        self._check(self.starts[number] <= most, f"task {number} starts for the {self.starts[number]}th time")
        # A thread can't be stopped: what was given to a shared process may run there while it has others' tasks.
        late = number in self.settled and number not in self.cancelled and wish.isolated and not self._lost
        late = late and wish.same is None and not self._has_budget and not self.lies
        self._check(not late, f"task {number} starts though it has settled")

    def _begins(self, number: int, machine: str, wish: Wish) -> None:
        # A call for one node is made there in any case; in the run before there may have been no node to name.
        known = number in self.handed and number not in self.pinned
        self._check(not known, f"task {number} starts, though its result is in the file")
        place = self.pinned.get(number, machine)
        self._check(place == machine, f"task {number} starts on {machine}, and must run on {place}")
        if wish.same is not None and not self.faults and not self._has_budget and wish.group in self._calm:
            self._check(number not in self.kept, f"task {number} starts though the result of its equal is kept")
            equal = [each for each in self.wishes.values() if each.same == wish.same]
            was_stopped = any(each.timeout is not None or each.number in self.cancelled for each in equal)
            starts_alone = number not in self._running or was_stopped  # which takes a moment there
            self._check(starts_alone, f"task {number} starts while its equal runs")

    def ended(self, where: str, load: Load) -> None:
        """Take note that a slot has answered for a task."""
        self._running.pop(load.number, None)
        self.world.tell(f"task {load.number} ends in {where}")

    def _settles(self, wish: Wish, future: Any) -> None:
        number = wish.number
        self._check(number not in self.settled, f"task {number} settles twice")
        self.settled.add(number)
        if future.cancelled():
            self.world.tell(f"task {number} is cancelled")
            self._check(number in self.cancelled, f"task {number} is cancelled, which nobody asked for")
        elif (error := future.exception()) is None:
            self.world.tell(f"task {number} returns")
            safe = not self._saves or wish.load.number in self.saved
            self._check(safe, f"task {number} returns, and what it wrote is not saved")
            self._check(self._is_right(wish, future.result()), f"task {number} has a wrong result")
            if not self.is_file_away and wish.same is None and number not in self.pinned:
                self.stored.add(number)
        else:
            self.world.tell(f"task {number} settles: {error!r}"[:160])
            self._check(self._is_due(wish, error), f"task {number}: {error!r}")
            self._check(traceback_text(error), f"task {number}: nothing to show of {type(error).__name__}")
            if number % 5 == 0:  # as the interpreter prints it when it ends the program
                traceback.format_exception(error)

    def _is_right(self, wish: Wish, result: Any) -> bool:
        if wish.end not in ("return", "lacks"):
            return False
        arrays = list(map(argument, wish.arrays))
        texts = self.texts.get(wish.number)
        for code in ([],) if texts is None else ([Imported(text)] for text in texts):
            wanted = carry_out(wish.load, *arrays, *code)
            if result == ([(wanted[0], item, *wanted[2:]) for item in items(wish)] if wish.count else wanted):
                return True
        return False

    def _is_due(self, wish: Wish, error: BaseException) -> object:
        """Whether that error fits what happened."""
        if wish.end == "odd" and is_odd(error, wish.load.number):
            return True
        if isinstance(error, LostCard):
            return self.lost_cards
        if isinstance(error, ValueError):
            return wish.end == "raise" and error.args == (wish.load.number,)
        if isinstance(error, TaskTimeout):
            long = wish.end in ("hang", "die") or wish.seconds > 0.9 * (wish.timeout or 0.0)
            return wish.timeout is not None and (long or self.faults)
        if isinstance(error, BudgetExceeded) or "share of budget" in str(error):  # NodeLost where hosts are in use
            return self._has_budget
        if isinstance(error, VolumeFailed):
            return self._saves and self.faults
        # What a shared process that died had begun is not known: all that it was given counts as started. A lying agent
        # may have said so of any task.
        attempts = 0 if self.lies else wish.attempts
        starts = self.starts[wish.load.number]
        if isinstance(error, PayloadError) and wish.end == "lacks":
            return self.refused_packages or self.lies
        if isinstance(error, PayloadError):
            return starts if wish.end == "riddle" else wish.end == "unpicklable" and not starts
        if isinstance(error, WorkerCrashed) and "no node can start" not in str(error):
            # A node that is lost may have begun all that it had.
            return not wish.isolated or ((starts or self.faults) and starts + self._lost >= attempts)
        if isinstance(error, NodeLost) and "can't run" not in str(error):
            # That node's loss is reported right afterwards. Tasks that kill their processes may lose it by themselves.
            is_lost = self.faults or "taken out of service" in str(error)
            if wish.number in self.pinned:
                return is_lost or self._has_budget
            return is_lost and (not wish.isolated or starts + self._lost + 1 >= attempts)
        return isinstance(error, SkywardError) and self.faults

    def have_settled(self, wishes: Collection[Wish]) -> bool:
        """Whether all these tasks have been submitted and have settled."""
        return len(self.settled) >= len(wishes)

    @property
    def unsettled(self) -> list[int]:
        """Tasks whose futures have not settled, or keep somebody waiting all the same."""
        return [number for number in self.wishes if number not in self.settled or self._keeps_waiting(number)]

    def _keeps_waiting(self, number: int) -> bool:
        return bool(concurrent.futures.wait([self._futures[number]], 0).not_done)

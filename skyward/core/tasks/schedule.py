"""Decides which task goes to which node, and when a task is retried. Events in, commands out. Pure.

There is no socket, thread, clock or payload here: tasks, groups and nodes are names. `Schedule.handle` takes one event
and returns the resulting commands in the order in which they are to be carried out.

Invariants, whatever the order of events:

* Every submitted task settles exactly once and never runs again afterwards.
* A node never has more tasks than its slots plus its depth (below). A group never has more tasks running than its
  limit: while there are more slots than that, no more of its tasks go out; otherwise the slots are the limit, and
  depth helps.
* No slot is idle while a task waits that may run there.
* A withdrawn task is not started again, unless it is known to have begun before.
* A task is started at most `attempts` times. Only the death of its process or node leads to another start. If the
  process ran several tasks when it died, any of them may be to blame: each is retried once, alone, without counting.
* A task that a node can't start (`REFUSED`) goes to another node, without counting. Once every node that is up has
  refused it, it settles: a node that might accept it may never come.

A node that only fails is a black hole: it is always free, and attracts tasks that other nodes would have completed. It
is expelled (`Expel`) once it has failed more often in a row than one bad event could make all its slots fail. Refusals
are its own fault. Crashes may be caused by the tasks, and count against the node only if other nodes have answered in
the meantime.

A node's *depth* is the number of tasks that it holds beyond its slots, so that no slot waits for a round trip. It
follows from the measured overhead and running time, and is 0 for tasks that run much longer than a round trip. When
another node is idle, tasks held ahead are recalled (`Recall`), so nothing waits behind a long task: the node returns
tasks that it has not begun, and those starts do not count. No more tasks are recalled at once than there are idle
slots, and none that the node is going to start sooner than they could arrive elsewhere, if its tasks take as long as
before. Whether they do, and whether a node may be asked again, is checked by a timer (`StartTimer`) for all nodes at
once: neither an event nor a recall may cost more the more nodes there are.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from skyward.core.tasks.schedule_events import (
    Began,
    Cancelled,
    Command,
    Event,
    Expel,
    Finished,
    Hopeless,
    NodeDown,
    NodeUp,
    Outcome,
    Recall,
    Returned,
    Run,
    Settle,
    StartTimer,
    Stop,
    Submitted,
    TimerFired,
    Verdict,
    Withdraw,
    Withdrawn,
)

__all__ = ["Schedule"]

_MAX_DEPTH = 32  # tasks held ahead per slot
_SLACK = 1.5  # times the need at the mean: running times and links vary, and surplus tasks can be recalled
_SMOOTH = 0.2  # weight of the newest running time in the mean
_ROUNDS, _MORE = 2, 3  # a node is expelled after this many times its slots, plus this many, failures in a row
_STUCK = 2  # ticks without the end of a run, after which its tasks evidently take longer than before

# --- state ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Task:
    """A task that has not settled. It waits in its group's queue unless `node` says where it is out."""

    name: int
    group: _Group
    attempts: int
    pinned: str | None
    node: str | None = None
    starts: int = 0
    alone: bool = False
    refused_by: frozenset[str] = frozenset()  # nodes
    begun: bool = False  # known to have run, not necessarily to its end
    withdrawn: bool = False  # to be cancelled unless it has begun
    over: bool = False  # settled; it may still sit in a queue

    def leave_node(self) -> None:
        """The task is no longer out."""
        if self.node is not None:
            self.node = None
            self.group.out -= 1


@dataclass(slots=True)
class _Group:
    """Tasks that belong together. Exists while it has tasks that have not settled, wherever they wait."""

    name: int
    limit: float  # as in `Submitted`
    waiting: deque[_Task] = field(default_factory=deque)
    tasks: int = 0
    out: int = 0

    def may_send(self, slots: int) -> bool:
        """Whether one more of its waiting tasks may go out."""
        limit = self.limit if self.limit >= 0 else max(slots + self.limit, 1)
        return self.out < limit or slots <= limit


@dataclass(slots=True)
class _NodeLoad:
    """A node that is up. `out` also holds settled tasks that the node has not stopped yet, as None."""

    name: str
    slots: int
    out: dict[int, _Task | None] = field(default_factory=dict)
    pinned: deque[_Task] = field(default_factory=deque)
    mean: float | None = None  # smoothed running time, seconds
    depth: int = 0
    soon: float = 0.0  # tasks that begin here in the time it takes to bring one elsewhere
    free: int = 0  # idle slots; negative: tasks held ahead
    idle: int = 0  # its share of the idle slots of all nodes
    recalled: int = 0  # tasks that it was asked to return, until it answers
    rests: bool = False  # it was asked, and is not asked again before the next tick
    ticks: int = 0  # since a run last ended here
    ring: OrderedDict[str, _NodeLoad] | None = None  # the ring it is in
    failed: int = 0  # runs in a row
    refused: int = 0  # of these
    answered: int = 0  # answered runs of all nodes when that row began
    expelled: bool = False

    def learn(self, seconds: float, overhead: float) -> None:
        """Set the depth from how long tasks run here and how long it takes to bring one."""
        self.mean = seconds if self.mean is None else self.mean + _SMOOTH * (seconds - self.mean)
        self.soon = self.slots * overhead / max(self.mean, 1e-6)
        self.depth = min(round(_SLACK * self.soon), self.slots * _MAX_DEPTH)

    def must_go(self, outcome: Outcome, answered: int) -> bool:
        """Count a failed run and return whether the node must go; `answered` counts the answered runs of all nodes."""
        if not self.failed:
            self.answered = answered
        self.failed += 1
        self.refused += outcome is Outcome.REFUSED
        limit = _ROUNDS * self.slots + _MORE
        return self.refused >= limit or (self.failed >= limit and answered > self.answered)

    def leave_ring(self) -> None:
        """Leave the ring until the node is placed again."""
        if self.ring is not None:
            del self.ring[self.name]
            self.ring = None

    @property
    def worth_asking(self) -> bool:
        """Whether it holds tasks ahead that are better off elsewhere, judging by how long others ran."""
        return not self.rests and (-self.free > self.soon or (self.free < 0 and self.ticks >= _STUCK))


class Schedule:
    """State of one pool's tasks and nodes. Not thread-safe."""

    def __init__(self) -> None:
        self._tasks: dict[int, _Task] = {}
        self._groups: dict[int, _Group] = {}
        self._turns: OrderedDict[int, _Group] = OrderedDict()  # groups with a waiting task that are below their limit
        self._nodes: dict[str, _NodeLoad] = {}
        self.at_nodes = partial(_at_nodes, self._nodes)
        """Returns how many tasks each node has; from any thread."""
        self._idle: OrderedDict[str, _NodeLoad] = OrderedDict()  # nodes with an idle slot; next in turn first
        self._spare: OrderedDict[str, _NodeLoad] = OrderedDict()  # nodes with busy slots and depth to fill
        self._refused: dict[int, _Task] = {}  # tasks that wait for a node that has not refused them
        self._pinned: set[str] = set()  # nodes that have pinned tasks waiting
        self._full: dict[str, _NodeLoad] = {}  # nodes that hold tasks ahead
        self._rich: OrderedDict[str, _NodeLoad] = OrderedDict()  # those worth recalling tasks from
        self._slots = 0  # of all nodes
        self._idle_slots = 0
        self._recalled = 0  # tasks that were recalled from nodes that have not answered yet
        self.answered = 0
        """Number of runs that ended in an answer, on all nodes."""
        self._timer_runs = False  # `TimerFired` is expected
        self._hopeless = False
        self._ending = False  # no node that comes now changes that

    def __repr__(self) -> str:
        out = sum(len(node.out) for node in self._nodes.values())
        slots = sum(node.slots for node in self._nodes.values())
        tasks = f"{len(self._tasks)} tasks, {len(self._groups)} groups"
        return f"<Schedule {tasks}; {len(self._nodes)} nodes: {out}/{slots} out>"

    def at_a_time(self, limit: int | None) -> int:
        """Return how many tasks of a group with this limit can run at once; from any thread."""
        slots = self._slots
        return slots if limit is None else min(limit, slots) if limit >= 0 else max(slots + limit, 1)

    def handle(self, event: Event) -> list[Command]:
        """Handle one event and return the resulting commands, `Run` before `Settle` where the order is free."""
        commands: list[Command] = []
        self._EVENTS[type(event)](self, event, commands)
        return commands

    def out(self, node: str) -> list[int]:
        """Return the tasks that a node was given and that are still wanted."""
        known = self._nodes.get(node)
        return [] if known is None else [name for name, task in known.out.items() if task is not None]

    # --- events ---

    def _submitted(self, event: Submitted, commands: list[Command]) -> None:
        group = self._groups.get(event.group)
        if group is None:
            limit = math.inf if event.limit is None else event.limit
            group = self._groups[event.group] = _Group(event.group, limit)
        group.tasks += 1
        task = self._tasks[event.task] = _Task(event.task, group, event.attempts, event.node)
        if event.node is not None and event.node not in self._nodes:
            self._settle(task, Verdict.NODE_LOST, commands)
        elif self._hopeless:
            self._settle(task, Verdict.HOPELESS, commands)
        else:
            self._enqueue(task, commands, first=False)
            self._assign(commands)

    def _cancelled(self, event: Cancelled, commands: list[Command]) -> None:
        task = self._tasks.get(event.task)
        if task is None:
            return
        _stop(task, self._nodes, commands)
        self._settle(task, Verdict.CANCELLED, commands)
        self._assign(commands)  # its group may have been at its limit

    def _withdrawn(self, event: Withdrawn, commands: list[Command]) -> None:
        task = self._tasks.get(event.task)
        if task is None or task.begun or task.withdrawn:
            return
        if task.node is None:
            self._settle(task, Verdict.CANCELLED, commands)
        else:
            task.withdrawn = True
            commands.append(Withdraw(task.node, task.name))

    def _began(self, event: Began, _: list[Command]) -> None:
        node = self._nodes.get(event.node)
        if node is None:
            return
        for name in event.tasks:
            if (task := node.out.get(name)) is not None:
                task.begun = True

    def _node_up(self, event: NodeUp, commands: list[Command]) -> None:
        self._hopeless = self._ending
        self._nodes[event.node] = _NodeLoad(event.node, event.slots)
        self._place(self._nodes[event.node])
        self._count(event.slots)
        self._assign(commands)

    def _node_down(self, event: NodeDown, commands: list[Command]) -> None:
        node = self._nodes.pop(event.node, None)
        if node is None:
            return
        node.leave_ring()
        self._full.pop(node.name, None)
        self._rich.pop(node.name, None)
        self._idle_slots -= node.idle
        self._recalled -= node.recalled
        self._count(-node.slots)
        self._pinned.discard(node.name)
        for task in reversed([task for task in node.out.values() if task is not None]):
            task.starts -= not event.begun
            if task.pinned is not None or task.starts >= task.attempts:
                self._settle(task, Verdict.NODE_LOST, commands)
            else:
                self._enqueue(task, commands, first=True)
        for task in node.pinned:
            if not task.over:
                self._settle(task, Verdict.NODE_LOST, commands)
        self._assign(commands)

    def _finished(self, event: Finished, commands: list[Command]) -> None:
        node = self._nodes.get(event.node)
        if node is None or event.task not in node.out:
            return
        task = node.out.pop(event.task)
        node.ticks = 0
        if event.seconds is not None and event.overhead is not None:
            node.learn(event.seconds, event.overhead)
        settled: list[Command] = []
        if event.outcome is Outcome.ANSWERED:
            self.answered += 1
            node.failed = node.refused = 0
        elif event.outcome is not Outcome.STOPPED and node.must_go(event.outcome, self.answered) and not node.expelled:
            node.expelled = True
            commands.append(Expel(node.name, node.failed))
        if task is not None:
            self._came_back(task, node, event.outcome, settled)
        self._place(node)
        self._assign(commands)
        commands += settled  # the slot's next task goes out before this result is processed

    def _returned(self, event: Returned, commands: list[Command]) -> None:
        node = self._nodes.get(event.node)
        if node is None:
            return
        self._recalled -= node.recalled
        node.recalled = 0
        for name in event.tasks:
            task = node.out.pop(name, None)
            if task is not None:
                task.starts -= 1
                self._enqueue(task, commands, first=True)
        self._place(node)
        self._assign(commands)

    def _timer_fired(self, _: TimerFired, commands: list[Command]) -> None:
        self._timer_runs = False
        for node in list(self._full.values()):
            node.ticks += 1
            node.rests = node.recalled > 0
            self._place(node)
        self._assign(commands)

    def _no_hope(self, event: Hopeless, commands: list[Command]) -> None:
        if event.ending or not self._nodes:
            self._hopeless, self._ending = True, self._ending or event.ending
            for task in list(self._tasks.values()):
                _stop(task, self._nodes, commands)
                self._settle(task, Verdict.HOPELESS, commands)

    _EVENTS: ClassVar[dict[type[Any], Callable[[Schedule, Any, list[Command]], None]]] = {
        Submitted: _submitted,
        Cancelled: _cancelled,
        Withdrawn: _withdrawn,
        Began: _began,
        NodeUp: _node_up,
        NodeDown: _node_down,
        Finished: _finished,
        Returned: _returned,
        TimerFired: _timer_fired,
        Hopeless: _no_hope,
    }

    # --- one task ---

    def _came_back(self, task: _Task, node: _NodeLoad, outcome: Outcome, commands: list[Command]) -> None:
        if outcome is Outcome.ANSWERED:
            self._settle(task, Verdict.ANSWERED, commands)
            return
        if outcome is Outcome.STOPPED:  # the node stopped it unasked
            self._settle(task, Verdict.CANCELLED, commands)
            return
        if outcome is Outcome.REFUSED:
            if task.pinned is not None:
                self._settle(task, Verdict.REFUSED, commands)
                return
            task.starts -= 1
            task.refused_by |= {node.name}
        if outcome is Outcome.SHARED_CRASH and task.attempts > 1 and not task.alone:
            task.alone = True
            task.starts -= 1  # another task may have killed the process: this start does not count
        if task.starts < task.attempts:
            self._enqueue(task, commands, first=True)
        else:
            self._settle(task, Verdict.CRASHED, commands)

    def _enqueue(self, task: _Task, commands: list[Command], *, first: bool) -> None:
        """Put a task into its queue, at the front if it has waited before."""
        if task.withdrawn and not task.begun:
            self._settle(task, Verdict.CANCELLED, commands)
            return
        task.leave_node()
        queue = task.group.waiting if task.pinned is None else self._nodes[task.pinned].pinned
        if task.refused_by:
            self._refused[task.name] = task
        elif first:
            queue.appendleft(task)
        else:
            queue.append(task)
        self._turn(task.group)
        if task.pinned is not None:
            self._place(self._nodes[task.pinned])

    def _settle(self, task: _Task, verdict: Verdict, commands: list[Command]) -> None:
        task.leave_node()
        task.over = True
        if task.refused_by:
            self._refused.pop(task.name, None)
        task.group.tasks -= 1
        del self._tasks[task.name]
        commands.append(Settle(task.name, verdict))
        self._turn(task.group)

    def _run(self, task: _Task, node: _NodeLoad, commands: list[Command]) -> None:
        task.node = node.name
        task.starts += 1
        task.group.out += 1
        node.out[task.name] = task
        commands.append(Run(node.name, task.name, task.alone))

    # --- whose turn it is ---

    def _turn(self, group: _Group) -> None:
        """Keep a group in the turns exactly while one of its tasks may go out; forget it when it has no tasks left."""
        while group.waiting and group.waiting[0].over:
            group.waiting.popleft()
        if group.waiting and group.may_send(self._slots):
            self._turns.setdefault(group.name, group)
            return
        self._turns.pop(group.name, None)
        if not group.tasks:
            del self._groups[group.name]

    def _count(self, slots: int) -> None:
        """Add to the number of slots, or subtract; this moves the limits of groups."""
        self._slots += slots
        for group in list(self._groups.values()):
            self._turn(group)

    def _place(self, node: _NodeLoad) -> None:
        """Put a node into the ring that fits its load; a node that is already in it keeps its place."""
        if node.pinned or self._pinned:
            while node.pinned and node.pinned[0].over:
                node.pinned.popleft()
            (self._pinned.add if node.pinned else self._pinned.discard)(node.name)
        free = 0 if node.expelled else node.slots - len(node.out)
        node.free = free
        if free > 0 or node.idle:
            self._idle_slots += max(free, 0) - node.idle
            node.idle = max(free, 0)
        ring = self._idle if free > 0 else self._spare if free > -node.depth else None
        if node.expelled:
            ring = None
        if ring is not node.ring:
            node.leave_ring()
            if ring is not None:
                ring[node.name] = node
            node.ring = ring
        if free < 0:
            self._full[node.name] = node
            if node.worth_asking:
                self._rich.setdefault(node.name, node)
                return
        elif self._full:
            self._full.pop(node.name, None)
        if self._rich:
            self._rich.pop(node.name, None)

    def _assign(self, commands: list[Command]) -> None:
        """Send out what may go out: groups and nodes take turns, idle slots come before depth."""
        for node in [self._nodes[name] for name in self._pinned] if self._pinned else ():
            while node.pinned and len(node.out) < node.slots and not node.expelled:
                self._run(node.pinned.popleft(), node, commands)
                self._place(node)
        if self._refused:
            self._assign_refused(commands)
        while self._turns and (self._idle or self._spare):
            ring = self._idle or self._spare
            node = next(iter(ring.values()))
            group = next(iter(self._turns.values()))
            self._run(group.waiting.popleft(), node, commands)
            self._turns.move_to_end(group.name)
            self._turn(group)
            ring.move_to_end(node.name)
            self._place(node)
        if self._idle and self._full:
            self._recall(commands)

    def _assign_refused(self, commands: list[Command]) -> None:
        """Send refused tasks to nodes that have not refused them; they have waited longer than all others."""
        up = [node for node in self._nodes.values() if not node.expelled]
        for task in list(self._refused.values()):
            able = [node for node in up if node.name not in task.refused_by]
            if up and not able:
                self._settle(task, Verdict.REFUSED, commands)
                continue
            ready = [node for node in able if node.ring is not None]
            if ready and task.group.may_send(self._slots):
                node = next((node for node in ready if node.ring is self._idle), ready[0])
                del self._refused[task.name]
                self._run(task, node, commands)
                self._turn(task.group)
                self._place(node)

    def _recall(self, commands: list[Command]) -> None:
        """Recall as many tasks as the idle slots could take; nothing waits here."""
        while self._rich and self._idle_slots > self._recalled:
            _, node = self._rich.popitem(last=False)
            node.recalled, node.rests = min(self._idle_slots - self._recalled, -node.free), True
            self._recalled += node.recalled
            commands.append(Recall(node.name, node.recalled))
        if not self._timer_runs:
            self._timer_runs = True
            commands.append(StartTimer())


def _at_nodes(nodes: dict[str, _NodeLoad]) -> dict[str, int]:
    return {name: len(node.out) for name, node in nodes.copy().items()}  # the copy is made at once


def _stop(task: _Task, nodes: Mapping[str, _NodeLoad], commands: list[Command]) -> None:
    """Stop a task where it runs, if it does."""
    if task.node is not None:
        nodes[task.node].out[task.name] = None
        commands.append(Stop(task.node, task.name))

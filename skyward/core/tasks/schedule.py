"""Decides which task goes to which node, and when one is tried again. Events in, commands out; nothing else.

No socket, thread, clock or payload is in here: tasks, calls and nodes are names. `Schedule.handle` takes one event and
returns the commands that follow from it, in the order in which they are to be carried out.

What always holds, whatever order events come in:

* every submitted task settles exactly once, and never runs again after it has;
* a node never has more tasks than its slots plus its depth (below); no more tasks of a call run than its limit: while
  there are more slots than that, no more of it go out, otherwise the slots are the limit and depth has its use;
* no slot is idle while a task waits that may run there;
* a task that was withdrawn is not started any more, unless it is known to have begun before;
* a task is started at most `attempts` times. Only the death of its process or node leads to another start. When the
  process that died ran several tasks, none of them is known to be guilty: each is tried once more, alone, uncounted;
* a task that a node can't begin (`REFUSED`) goes to another one, uncounted. When all that are up have refused it, it is
  settled: nobody waits for a node that may never come.

A node that does nothing but fail is a black hole: it is always free, and draws in what others would have done. So it is
made to go (`Expel`) when it has failed more often in a row than all its slots can at a time by one bad event. Refusals
are its own fault. Crashes may be the tasks', and count against it only if other nodes had results meanwhile.

A node's *depth* is the number of tasks it holds beyond its slots so that a slot need not wait for a round trip. It
follows from the measured overhead and running time: 0 for tasks that run much longer than a round trip. What a node
holds ahead is asked back when another one has nothing to do (`Recall`), so that nothing waits behind a long task; the
node gives back what it has not begun, and such a start does not count. No more is asked for at a time than slots are
idle, and nothing that the node will begin sooner than it could be elsewhere, if its tasks run as they did. Whether they
do, and whether a node may be asked again, is found out now and then (`Look`), for all nodes at once: neither an event
nor a question may cost the more, the more nodes there are.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from skyward.core.tasks.schedule_events import (
    Began,
    Cancelled,
    Command,
    Event,
    Expel,
    Finished,
    Hopeless,
    Look,
    Looked,
    NodeDown,
    NodeUp,
    Outcome,
    Recall,
    Returned,
    Run,
    Settle,
    Stop,
    Submitted,
    Verdict,
    Withdraw,
    Withdrawn,
)

__all__ = [
    "Began",
    "Cancelled",
    "Command",
    "Event",
    "Expel",
    "Finished",
    "Hopeless",
    "Look",
    "Looked",
    "NodeDown",
    "NodeUp",
    "Outcome",
    "Recall",
    "Returned",
    "Run",
    "Schedule",
    "Settle",
    "Stop",
    "Submitted",
    "Verdict",
    "Withdraw",
    "Withdrawn",
]

_DEEPEST = 32  # tasks held ahead per slot, at most
_SLACK = 1.5  # times what is needed at the mean: tasks and lines are uneven, and what is too much can be asked back
_SMOOTH = 0.2  # weight of the newest running time in the mean
_ROUNDS, _MORE = 2, 3  # times its slots, and runs besides, that may fail in a row before a node must go
_STUCK = 2  # looks without the end of a run: then its tasks do not run as they did

# --- state ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Task:
    """A task that has not settled. It waits in its call's queue unless `node` says where it is out."""

    name: int
    call: _Call
    attempts: int
    pinned: str | None
    node: str | None = None
    starts: int = 0
    alone: bool = False
    refused_by: frozenset[str] = frozenset()  # nodes
    begun: bool = False  # known to have been run, if not to its end
    withdrawn: bool = False  # to be cancelled unless it has begun
    over: bool = False  # settled; only a queue may still hold it


@dataclass(slots=True)
class _Call:
    """Tasks that belong together. Exists while it has waiting tasks or tasks out."""

    name: int
    limit: float  # as in `Submitted`
    waiting: deque[_Task] = field(default_factory=deque)
    refused: int = 0  # tasks that wait for another node than those that refused them
    out: int = 0

    def may_send(self, slots: int) -> bool:
        """Whether one more of its tasks may go out, of which some wait."""
        limit = self.limit if self.limit >= 0 else max(slots + self.limit, 1)
        return self.out < limit or slots <= limit


@dataclass(slots=True)
class _Node:
    """A node that is up. `out` also holds settled tasks that the node has not stopped yet (None)."""

    name: str
    slots: int
    out: dict[int, _Task | None] = field(default_factory=dict)
    pinned: deque[_Task] = field(default_factory=deque)
    mean: float | None = None  # smoothed running time, seconds
    depth: int = 0
    soon: float = 0.0  # tasks that begin here while one could be brought elsewhere
    free: int = 0  # idle slots; below 0: tasks ahead
    idle: int = 0  # of them, what counts in the sum of all nodes
    asked: int = 0  # tasks that it has been asked for, until it answers
    rests: bool = False  # it was asked, and is not asked again before the next look
    looks: int = 0  # since a run ended here
    ring: OrderedDict[str, _Node] | None = None  # the one that it is in
    failed: int = 0  # runs in a row
    refused: int = 0  # of them
    answered: int = 0  # runs of all nodes that had been answered when that row began
    expelled: bool = False

    def learn(self, seconds: float, overhead: float) -> None:
        """Set the depth from how long tasks run here and what it takes to bring one."""
        self.mean = seconds if self.mean is None else self.mean + _SMOOTH * (seconds - self.mean)
        self.soon = self.slots * overhead / max(self.mean, 1e-6)
        self.depth = min(round(_SLACK * self.soon), self.slots * _DEEPEST)

    def must_go(self, outcome: Outcome, answered: int) -> bool:
        """Count a run that failed; whether that is one too many. `answered`: runs of all nodes so far."""
        if not self.failed:
            self.answered = answered
        self.failed += 1
        self.refused += outcome is Outcome.REFUSED
        limit = _ROUNDS * self.slots + _MORE
        return self.refused >= limit or (self.failed >= limit and answered > self.answered)

    def leave_ring(self) -> None:
        """It is in none until it is placed again."""
        if self.ring is not None:
            del self.ring[self.name]
            self.ring = None

    @property
    def worth_asking(self) -> bool:
        """Whether it has tasks ahead that are better off elsewhere; as far as is known from how long others ran."""
        return not self.rests and (-self.free > self.soon or (self.free < 0 and self.looks >= _STUCK))


class Schedule:
    """The state of one pool's tasks and nodes. Not thread safe."""

    def __init__(self) -> None:
        self._tasks: dict[int, _Task] = {}
        self._calls: dict[int, _Call] = {}
        self._turns: OrderedDict[int, _Call] = OrderedDict()  # those with a task waiting that are not at their limit
        self._nodes: dict[str, _Node] = {}
        self._idle: OrderedDict[str, _Node] = OrderedDict()  # nodes with an idle slot, whose turn it is first
        self._spare: OrderedDict[str, _Node] = OrderedDict()  # nodes whose slots are busy, with depth to fill
        self._refused: dict[int, _Task] = {}  # those that wait for another node than those that refused them
        self._pinned: set[str] = set()  # nodes that have pinned tasks waiting
        self._full: dict[str, _Node] = {}  # nodes with tasks ahead
        self._rich: OrderedDict[str, _Node] = OrderedDict()  # those of them that are worth asking for some
        self._slots = 0  # of all nodes
        self._idle_slots = 0
        self._asked = 0  # tasks that nodes have been asked for and have not answered
        self.answered = 0
        """Runs that ended in an answer, on all nodes."""
        self._looking = False  # `Looked` is expected
        self._hopeless = False
        self._handlers: dict[type, Callable[[Any, list[Command]], None]] = {
            Submitted: self._submitted,
            Cancelled: self._cancelled,
            Withdrawn: self._withdrawn,
            Began: self._began,
            NodeUp: self._node_up,
            NodeDown: self._node_down,
            Finished: self._finished,
            Returned: self._returned,
            Looked: self._looked,
            Hopeless: self._no_hope,
        }

    def __repr__(self) -> str:
        out = sum(len(node.out) for node in self._nodes.values())
        slots = sum(node.slots for node in self._nodes.values())
        tasks = f"{len(self._tasks)} tasks, {len(self._calls)} calls"
        return f"<Schedule {tasks}; {len(self._nodes)} nodes: {out}/{slots} out>"

    def at_a_time(self, limit: int | None) -> int:
        """How many tasks of a call with this limit run at a time, if there are enough; any thread may ask."""
        slots = self._slots
        return slots if limit is None else min(limit, slots) if limit >= 0 else max(slots + limit, 1)

    def handle(self, event: Event) -> list[Command]:
        """Take one event; the commands that follow from it, `Run` before `Settle` where the order is free."""
        commands: list[Command] = []
        self._handlers[type(event)](event, commands)
        return commands

    def out(self, node: str) -> list[int]:
        """Tasks that a node was given and that somebody waits for."""
        known = self._nodes.get(node)
        return [] if known is None else [name for name, task in known.out.items() if task is not None]

    # --- events ---

    def _submitted(self, event: Submitted, commands: list[Command]) -> None:
        call = self._calls.get(event.call)
        if call is None:
            limit = math.inf if event.limit is None else event.limit
            call = self._calls[event.call] = _Call(event.call, limit)
        task = self._tasks[event.task] = _Task(event.task, call, event.attempts, event.node)
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
        if task.node is not None:
            self._nodes[task.node].out[task.name] = None
            commands.append(Stop(task.node, task.name))
        self._settle(task, Verdict.CANCELLED, commands)
        self._assign(commands)  # its call may have been at its limit

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
        self._hopeless = False
        self._nodes[event.node] = _Node(event.node, event.slots)
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
        self._asked -= node.asked
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
        node.looks = 0
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
        commands += settled  # the slot's next task goes out before anybody looks at this one's result

    def _returned(self, event: Returned, commands: list[Command]) -> None:
        node = self._nodes.get(event.node)
        if node is None:
            return
        self._asked -= node.asked
        node.asked = 0
        for name in event.tasks:
            task = node.out.pop(name, None)
            if task is not None:
                task.starts -= 1
                self._enqueue(task, commands, first=True)
        self._place(node)
        self._assign(commands)

    def _looked(self, _: Looked, commands: list[Command]) -> None:
        self._looking = False
        for node in list(self._full.values()):
            node.looks += 1
            node.rests = node.asked > 0
            self._place(node)
        self._assign(commands)

    def _no_hope(self, _: Hopeless, commands: list[Command]) -> None:
        if not self._nodes:
            self._hopeless = True
            for task in list(self._tasks.values()):
                self._settle(task, Verdict.HOPELESS, commands)

    # --- one task ---

    def _came_back(self, task: _Task, node: _Node, outcome: Outcome, commands: list[Command]) -> None:
        if outcome is Outcome.ANSWERED:
            self._settle(task, Verdict.ANSWERED, commands)
            return
        if outcome is Outcome.STOPPED:  # the node gave it up without being asked
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
            task.starts -= 1  # perhaps another task killed the process: this start does not count
        if task.starts < task.attempts:
            self._enqueue(task, commands, first=True)
        else:
            self._settle(task, Verdict.CRASHED, commands)

    def _enqueue(self, task: _Task, commands: list[Command], *, first: bool) -> None:
        """Let a task wait: at the front if it has waited before."""
        if task.withdrawn and not task.begun:
            self._settle(task, Verdict.CANCELLED, commands)
            return
        self._leave(task)
        queue = task.call.waiting if task.pinned is None else self._nodes[task.pinned].pinned
        if task.refused_by:
            self._refused[task.name] = task
            task.call.refused += 1
        elif first:
            queue.appendleft(task)
        else:
            queue.append(task)
        self._turn(task.call)
        if task.pinned is not None:
            self._place(self._nodes[task.pinned])

    def _settle(self, task: _Task, verdict: Verdict, commands: list[Command]) -> None:
        self._leave(task)
        task.over = True
        if task.refused_by and self._refused.pop(task.name, None) is not None:
            task.call.refused -= 1
        del self._tasks[task.name]
        commands.append(Settle(task.name, verdict))
        self._turn(task.call)

    def _leave(self, task: _Task) -> None:
        if task.node is not None:
            task.node = None
            task.call.out -= 1

    def _run(self, task: _Task, node: _Node, commands: list[Command]) -> None:
        task.node = node.name
        task.starts += 1
        task.call.out += 1
        node.out[task.name] = task
        commands.append(Run(node.name, task.name, task.alone))

    # --- whose turn it is ---

    def _turn(self, call: _Call) -> None:
        """Keep a call in the turns exactly while it has a task that may go out, and forget it when it has none left."""
        while call.waiting and call.waiting[0].over:
            call.waiting.popleft()
        if call.waiting and call.may_send(self._slots):
            self._turns.setdefault(call.name, call)
            return
        self._turns.pop(call.name, None)
        if not call.waiting and not call.out and not call.refused and self._calls.get(call.name) is call:
            del self._calls[call.name]

    def _count(self, slots: int) -> None:
        """There are so many slots more, or fewer: other calls may be at their limit now."""
        self._slots += slots
        for call in list(self._calls.values()):
            self._turn(call)

    def _place(self, node: _Node) -> None:
        """Keep a node in the ring that its load says, at its place if it is there already."""
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
        """Send out what may go out: a call in turn to a node in turn, idle slots before depth."""
        for node in [self._nodes[name] for name in self._pinned] if self._pinned else ():
            while node.pinned and len(node.out) < node.slots and not node.expelled:
                self._run(node.pinned.popleft(), node, commands)
                self._place(node)
        if self._refused:
            self._assign_refused(commands)
        while self._turns and (self._idle or self._spare):
            ring = self._idle or self._spare
            node = next(iter(ring.values()))
            call = next(iter(self._turns.values()))
            self._run(call.waiting.popleft(), node, commands)
            self._turns.move_to_end(call.name)
            self._turn(call)
            ring.move_to_end(node.name)
            self._place(node)
        if self._idle and self._full:
            self._recall(commands)

    def _assign_refused(self, commands: list[Command]) -> None:
        """Send what a node has refused to one that has not; it has waited before all others."""
        up = [node for node in self._nodes.values() if not node.expelled]
        for task in list(self._refused.values()):
            able = [node for node in up if node.name not in task.refused_by]
            if up and not able:
                self._settle(task, Verdict.REFUSED, commands)
                continue
            ready = [node for node in able if node.ring is not None]
            if ready and task.call.may_send(self._slots):
                node = next((node for node in ready if node.ring is self._idle), ready[0])
                del self._refused[task.name]
                task.call.refused -= 1
                self._run(task, node, commands)
                self._turn(task.call)
                self._place(node)

    def _recall(self, commands: list[Command]) -> None:
        """Nothing waits here and slots are idle: ask for as many tasks as those could take."""
        while self._rich and self._idle_slots > self._asked:
            _, node = self._rich.popitem(last=False)
            node.asked, node.rests = min(self._idle_slots - self._asked, -node.free), True
            self._asked += node.asked
            commands.append(Recall(node.name, node.asked))
        if not self._looking:
            self._looking = True
            commands.append(Look())

"""What the events of one pool add up to: the one place where nodes, tasks, machines and costs are counted. Pure.

The console's lines, `Compute.status` and whatever else shows a pool read this, so that they can't contradict each
other. `skyward.core.facts` feeds it. What it keeps is bounded: an entry for each node and each rented machine that
exists, for each of `MAX_FUNCTIONS` functions, and for the last few nodes that were lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from skyward.core.events import (
    Event,
    MachineEnded,
    MachineInfo,
    MachineMade,
    Machines,
    NodeBegun,
    NodeGone,
    NodeLoad,
    NodeReady,
    NodeStep,
    PoolClosed,
    PoolDraining,
    PoolStarted,
    TaskEnded,
    TasksQueued,
    Transferred,
)
from skyward.core.gpus import Gpu
from skyward.core.status import FunctionStatus, NodeStatus, PoolStatus, RunningTask, TaskCounts

__all__ = ["MAX_FUNCTIONS", "OTHER", "Tally"]

MAX_FUNCTIONS = 100
OTHER = "other"
"""Name under which functions beyond the first `MAX_FUNCTIONS` are counted."""

_WINDOW = 10  # seconds over which the rate is measured, the present one included
_KEPT = 32  # seconds with a count of their own, since events of several threads arrive out of order
_MANY = 20  # tasks in the window; with this many or more, the rate predicts better than run times do
_SHORT = 0.1  # seconds; shorter tasks can't keep a slot busy, whoever sends them
_MAX_LOST = 20  # nodes that were lost and are still shown


@dataclass(slots=True)
class _Node:
    state: str = "starting"
    detail: str = ""
    slots: int = 0
    info: MachineInfo = field(default_factory=MachineInfo)
    gpus: tuple[Gpu, ...] = ()
    load: NodeLoad | None = None
    done: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Function:
    queued: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    seconds: float = 0.0
    ran: int = 0  # of those that have ended

    @property
    def unfinished(self) -> int:
        """How many have not ended. A task's end may be reported before its submission."""
        return max(0, self.queued - self.done - self.failed - self.cancelled)

    @property
    def mean(self) -> float | None:
        """Seconds that one takes; None before any has run."""
        return self.seconds / self.ran if self.ran else None


class _RateMeter:
    """Counts the tasks done in each of the last seconds."""

    def __init__(self) -> None:
        self._counts = [0] * _KEPT
        self._last = 0  # second
        self.began, self.ends = math.inf, math.inf  # the latest second: its tasks are added to `count` directly
        self.count = 0

    def done(self, count: int, now: float) -> None:
        """Count tasks that ended outside the latest second."""
        second = int(now)
        self._counts[self._last % _KEPT] += self.count
        self.count = 0
        if second > self._last:
            for empty in range(max(self._last + 1, second - _KEPT + 1), second + 1):
                self._counts[empty % _KEPT] = 0
            self._last = second
        self.began, self.ends = self._last, self._last + 1
        if second > self._last - _KEPT:
            self._counts[second % _KEPT] += count

    def recent(self, now: float) -> int:
        """How many there were in the window."""
        last = int(now)
        kept = range(max(last - _WINDOW + 1, self._last - _KEPT + 1), min(last, self._last) + 1)
        return sum(self._counts[second % _KEPT] for second in kept) + (self.count if self._last in kept else 0)


class _Money:
    """What rented machines cost."""

    def __init__(self) -> None:
        self.unpriced = 0
        self._rented: dict[tuple[str, str], tuple[MachineInfo, float]] = {}  # and since when
        self._spent = 0.0  # US dollars, on machines that have ended

    @property
    def price(self) -> float:
        """US dollars per hour."""
        return sum((info.price or 0.0 for info, _ in self._rented.values()), 0.0)

    def cost(self, now: float) -> float:
        """US dollars so far."""
        return self._spent + sum(_cost(info, since, now) for info, since in self._rented.values())

    def made(self, event: MachineMade, now: float) -> None:
        """Count a machine."""
        if (key := (event.info.provider, event.id)) not in self._rented:
            self._rented[key] = event.info, now - event.age
            self.unpriced += event.info.price is None

    def ended(self, event: MachineEnded, now: float) -> None:
        """Stop counting a machine's cost."""
        if (machine := self._rented.pop((event.provider, event.id), None)) is not None:
            self._spent += _cost(*machine, now)


def _transferred(tally: Tally, event: Transferred, _: float) -> None:
    if not event.peer:
        tally.sent += event.size


@dataclass(slots=True)
class Tally:
    """What the events of one pool add up to.

    Each event is added with the time at which it occurred. Times come from one clock and need not be strictly in order,
    as events come from several threads. Not thread-safe.

    Notes
    -----
    *Wall* time runs from when the first task was queued until the last task ended. *Slot-seconds* are the integral of
    the ready slots over the wall time, so a node that joined late or was lost counts for the time it was there.
    *Efficiency* is the total time that tasks ran, divided by the slot-seconds. A task that was lost with its node and
    run again counts once. What the driver does between two batches of work is part of the wall time.

    Nodes do not report *busy* slots. One submission occupies one slot, and no slot is idle while a submission waits
    that could run there, so busy = min(slots, submissions that have not ended).
    """

    pool: str = ""
    provider: str = ""
    wanted: int = 0
    nodes: dict[str, int] = field(default_factory=dict)  # nodes that are ready -> their slots
    steps: dict[str, str] = field(default_factory=dict)  # nodes that are starting -> what they are doing
    machines: Machines = field(default_factory=Machines)
    lost: int = 0
    slots: int = 0
    queued: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    busy_seconds: float = 0.0
    sent: int = 0
    received: int = 0
    draining: bool = False  # the block has ended, and nodes finish what they have
    _out: int = 0  # submissions (each a task or a batch) that have not ended
    _began: float | None = None
    _closed: float | None = None
    _first_queued: float | None = None
    _last_ended: float | None = None
    _slot_seconds: float = 0.0  # from the first queued task until `_slots_since`
    _slots_since: float = 0.0
    _slot_seconds_before: float = 0.0  # the same until the last task ended before `_slots_since`
    _about: dict[str, _Node] = field(default_factory=dict)  # nodes that are there
    _gone: deque[tuple[str, _Node]] = field(default_factory=lambda: deque(maxlen=_MAX_LOST))
    _functions: dict[str, _Function] = field(default_factory=dict)
    _meter: _RateMeter = field(default_factory=_RateMeter)
    money: _Money = field(default_factory=_Money)

    def add(self, event: Event, now: float) -> None:
        """Count one event, in constant time. Output and notes are ignored."""
        handle = self.HANDLERS.get(type(event))
        if handle is not None:
            handle(self, event, now)

    # --- figures ---

    @property
    def busy(self) -> int:
        """Number of slots that are running a task."""
        return max(0, min(self.slots, self._out))

    @property
    def unfinished(self) -> int:
        """Tasks that were submitted and have not ended."""
        return max(0, self.queued - self.done - self.failed - self.cancelled)

    @property
    def wall(self) -> float:
        """Seconds from when the first task was queued until the last one ended; 0 before any has ended."""
        if self._first_queued is None or self._last_ended is None:
            return 0.0
        return max(0.0, self._last_ended - self._first_queued)

    @property
    def throughput(self) -> float:
        """Tasks done per second of wall time; 0 before any has ended."""
        return self.done / self.wall if self.wall else 0.0

    @property
    def efficiency(self) -> float | None:
        """Total time that tasks ran / slot-seconds, from 0 to 1; None before a task has ended on a slot."""
        return self.busy_seconds / total if (total := self._slot_seconds_at_end) > 0 else None

    @property
    def could_be_efficient(self) -> bool:
        """Whether the work could have kept the slots busy: enough tasks for all slots, and not too short on average."""
        ended = self.done + self.failed
        return ended * self.wall >= 2 * self._slot_seconds_at_end > 0 and self.busy_seconds >= ended * _SHORT

    @property
    def _slot_seconds_at_end(self) -> float:
        """Slot-seconds until the last task ended."""
        if self._last_ended is None or self._last_ended < self._slots_since:
            return self._slot_seconds_before
        return self._slot_seconds + self.slots * (self._last_ended - self._slots_since)

    def elapsed(self, now: float) -> float:
        """Seconds since the pool was entered, until it was closed."""
        if self._began is None:
            return 0.0
        return max(0.0, (now if self._closed is None else self._closed) - self._began)

    def rate(self, now: float) -> float:
        """Tasks done per second over the last ten seconds, or since the first was queued."""
        if self._first_queued is None:
            return 0.0
        since = max(int(now) - _WINDOW + 1.0, self._first_queued)
        return self._meter.recent(now) / (now - since) if now > since else 0.0

    def left(self, now: float) -> float | None:
        """Seconds until all tasks have ended, if they take as long as those before; None if that can't be estimated."""
        if not self.unfinished:
            return 0.0
        work = longest = 0.0
        for function in self._functions.values():
            if count := function.unfinished:
                if (mean := function.mean) is None:
                    return None
                work += count * mean
                longest = max(longest, mean)
        if not self.slots:
            return None
        # Running tasks are half done on average, and the last one takes its time, however many slots there are.
        seconds = max((work - self.busy * longest / 2) / self.slots, longest / 2)
        many = self._meter.recent(now) >= _MANY and (rate := self.rate(now))
        return max(seconds, self.unfinished / rate) if many else seconds

    def status(self, now: float, at_nodes: Mapping[str, int], running: Sequence[RunningTask] = ()) -> PoolStatus:
        """Return everything as a value.

        Parameters
        ----------
        now
            The time.
        at_nodes
            How many tasks or batches each node has.
        running
            Those that have run for a moment, the longest first.
        """
        ready = ((name, node, min(node.slots, at_nodes.get(name, 0))) for name, node in self._about.items())
        lost = ((name, node, 0) for name, node in self._gone)
        busy = min(self.busy, self.unfinished)
        return PoolStatus(
            self.pool,
            tuple(_node(*each, draining=self.draining) for each in (*ready, *lost)),
            self.provider,
            self.wanted,
            self.lost,
            self.machines,
            TaskCounts(self.unfinished - busy, busy, self.done, self.failed, self.cancelled),
            tuple(_function(label, each) for label, each in self._functions.items()),
            self.rate(now),
            self.sent,
            self.received,
            self.money.cost(now),
            self.money.price,
            self.money.unpriced,
            self.left(now),
            self.elapsed(now),
            tuple(running),
        )

    # --- tasks ---

    def _queued(self, event: TasksQueued, now: float) -> None:
        count, label = event
        self.queued += count
        self._out += 1
        if self._first_queued is None:
            self._first_queued = self._slots_since = now
        function = self._functions.get(label) or self._function(label)
        function.queued += count

    def _ended(self, event: TaskEnded, now: float) -> None:
        count, seconds, ok, cancelled, name, _, label, _, _, sent, received, _ = event
        # The end of a quick task may be reported before the thread that submitted it reports the submission.
        if self._first_queued is None:
            self._first_queued = self._slots_since = now - seconds
        function, node = self._functions.get(label) or self._function(label), self._about.get(name)
        self._out -= 1
        if ok:
            self.done += count
            function.done += count
            meter = self._meter
            if meter.began <= now < meter.ends:
                meter.count += count
            else:
                meter.done(count, now)
            if node is not None:
                node.done += count
        elif cancelled:
            self.cancelled += count
            function.cancelled += count
        else:
            self.failed += count
            function.failed += count
            if node is not None:
                node.failed += count
        if seconds:
            self.busy_seconds += seconds
            function.seconds += seconds
            function.ran += count
        self.sent += sent
        self.received += received
        if self._last_ended is None or now > self._last_ended:
            self._last_ended = now

    def _function(self, label: str) -> _Function:
        """Return the counter of a function that is not counted yet: its own, or that of the others."""
        name = label if len(self._functions) < MAX_FUNCTIONS else OTHER
        return self._functions.setdefault(name, _Function())

    # --- nodes ---

    def _begun(self, event: NodeBegun, _: float) -> None:
        self._known(event.node).info = event.info

    def _stepped(self, event: NodeStep, _: float) -> None:
        self.steps[event.node] = self._known(event.node).detail = event.step

    def _ready(self, event: NodeReady, now: float) -> None:
        self.steps.pop(event.node, None)
        node = self._known(event.node)
        node.state, node.detail, node.slots, node.gpus, node.info = "ready", "", event.slots, event.gpus, event.info
        self._set_slots(event.node, event.slots, now)

    def _loaded(self, event: NodeLoad, _: float) -> None:
        if (node := self._about.get(event.node)) is not None:
            node.load = event
            node.gpus = event.gpus or node.gpus

    def _went(self, event: NodeGone, now: float) -> None:
        self.steps.pop(event.node, None)
        node = self._about.pop(event.node, None)
        if event.reason is not None:
            self.lost += 1
            node = node or _Node()
            node.state, node.detail, node.slots = "lost", event.reason, 0
            self._gone.append((event.node, node))
        self._set_slots(event.node, 0, now)

    def _known(self, name: str) -> _Node:
        node = self._about.get(name)
        if node is None:
            node = self._about[name] = _Node()
        return node

    def _set_slots(self, node: str, slots: int, now: float) -> None:
        if self._first_queued is not None:
            self._slot_seconds_before = self._slot_seconds_at_end
            self._slot_seconds += self.slots * max(0.0, now - self._slots_since)
            self._slots_since = max(now, self._slots_since)
        self.slots += slots - self.nodes.pop(node, 0)
        if slots:
            self.nodes[node] = slots

    def _counted(self, event: Machines, _: float) -> None:
        self.machines = event

    def _started(self, event: PoolStarted, now: float) -> None:
        self.pool, self.provider, self.wanted, self._began = event.pool, event.provider, event.nodes, now

    def _ends(self, event: PoolDraining | PoolClosed, now: float) -> None:
        if isinstance(event, PoolDraining):
            self.draining = True
        else:
            self._closed = now

    HANDLERS: ClassVar[dict[type[Any], Callable[[Tally, Any, float], None]]] = {
        TaskEnded: _ended,
        TasksQueued: _queued,
        NodeBegun: _begun,
        NodeStep: _stepped,
        NodeReady: _ready,
        NodeLoad: _loaded,
        NodeGone: _went,
        Transferred: _transferred,
        MachineMade: lambda tally, event, now: tally.money.made(event, now),
        MachineEnded: lambda tally, event, now: tally.money.ended(event, now),
        Machines: _counted,
        PoolStarted: _started,
        PoolDraining: _ends,
        PoolClosed: _ends,
    }
    """Event class -> what counts it. Others are ignored."""


def _cost(info: MachineInfo, since: float, now: float) -> float:
    return info.billing.cost(info.price or 0.0, now - since)


def _node(name: str, node: _Node, busy: int, *, draining: bool) -> NodeStatus:
    return NodeStatus(
        name,
        node.slots,
        node.gpus,
        "" if node.load is None else node.load.problem,
        "draining" if draining and node.state == "ready" else node.state,
        node.detail,
        busy,
        node.done,
        node.failed,
        node.load,
        node.info.provider,
        node.info.type,
        node.info.region,
        node.info.spot,
        node.info.price,
    )


def _function(label: str, each: _Function) -> FunctionStatus:
    return FunctionStatus(label, each.unfinished, each.done, each.failed, each.cancelled, each.seconds, each.mean)

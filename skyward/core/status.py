"""The state of a pool at one moment, as values, and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from skyward.core.events import Machines, NodeLoad
from skyward.core.gpus import Gpu
from skyward.core.tables import html_table, text_table
from skyward.core.visible import in_html, shown

__all__ = ["FunctionStatus", "NodeStatus", "PoolStatus", "RunningTask", "TaskCounts", "duration"]


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node.

    Attributes
    ----------
    name
        Its name.
    slots
        How many tasks it runs at once; 0 unless it is ready.
    gpus
        The GPUs of its slots, with their usage as last reported; none unless the pool was opened with
        ``Worker(gpus=...)``.
    problem
        Why GPU usage is not known, in words; empty if it is.
    state
        ``"starting"``, ``"ready"``, ``"lost"``, or ``"draining"``: the block has ended, and the node finishes its
        tasks.
    detail
        What it is doing while it starts, or why it was lost.
    busy
        How many of its slots run a task.
    done, failed
        How many tasks ended there.
    load
        The node's latest report; None before the first.
    provider, type, region, spot, price
        Its machine, see `skyward.core.events.MachineInfo`.
    """

    name: str
    slots: int
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    state: str = "ready"
    detail: str = ""
    busy: int = 0
    done: int = 0
    failed: int = 0
    load: NodeLoad | None = None
    provider: str = ""
    type: str = ""
    region: str | None = None
    spot: bool = False
    price: float | None = None


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """How many of the user's tasks are in which state. A slot runs one task of a batch at a time."""

    waiting: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def unfinished(self) -> int:
        """Those that are waiting or running."""
        return self.waiting + self.running

    @property
    def total(self) -> int:
        """All that were submitted."""
        return self.waiting + self.running + self.done + self.failed + self.cancelled

    def __str__(self) -> str:
        counts = self.waiting, self.running, self.done, self.failed, self.cancelled
        words = "waiting", "running", "done", "failed", "cancelled"
        return ", ".join(f"{count} {word}" for count, word in zip(counts, words, strict=True) if count) or "none"


@dataclass(frozen=True, slots=True)
class FunctionStatus:
    """The tasks of one function.

    Attributes
    ----------
    label
        Its name; ``"other"`` for all functions beyond the first 100.
    unfinished, done, failed, cancelled
        How many tasks are in which state.
    seconds
        Total run time of the tasks that have ended.
    mean
        Average run time of a task, in seconds; None before one that ran has ended.
    """

    label: str
    unfinished: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    seconds: float = 0.0
    mean: float | None = None


class RunningTask(NamedTuple):
    """A task, or a batch of tasks, that has run for a moment.

    Attributes
    ----------
    node, slot
        Where; `slot` is -1 if it is not known, for example where slots are threads of one process.
    label
        Its function, by name.
    count
        How many of the user's tasks it consists of.
    seconds
        How long it has run, counted from its node's report, up to a second after it began.
    """

    node: str
    slot: int
    label: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not needed
    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class PoolStatus:
    """A pool at one moment. As text it is a table.

    Attributes
    ----------
    name
        Unique name of the pool.
    nodes
        Those that are ready or starting, in the order of their numbers, and the last few that were lost.
    provider
        Names of its providers.
    wanted
        Maximum number of nodes.
    lost
        How many nodes were lost.
    machines
        How many rented machines are not nodes yet, or no longer: ordered, booting, ending.
    tasks
        All tasks, by state.
    functions
        All tasks, by function, in the order of their first tasks.
    rate
        Tasks that succeeded per second, over the last ten seconds.
    sent, received
        Bytes that this program sent to nodes, and that came back: pickled calls and results, and large arrays, files
        and code each time that a node got them from here.
    cost
        US dollars that rented machines have cost so far; those of unknown price are not counted.
    price
        US dollars per hour of those that exist now; those of unknown price are not counted.
    unpriced
        How many machines are not included in `cost` and `price`, because their price is not known.
    left
        Estimated seconds until all submitted tasks have ended; None if not known, 0 if there is nothing to do.
    seconds
        Since the pool was entered.
    running
        The tasks that have run for a moment, the longest first. Most that end within 50 ms never appear.
    """

    name: str
    nodes: tuple[NodeStatus, ...] = ()
    provider: str = ""
    wanted: int = 0
    lost: int = 0
    machines: Machines = field(default_factory=Machines)
    tasks: TaskCounts = field(default_factory=TaskCounts)
    functions: tuple[FunctionStatus, ...] = ()
    rate: float = 0.0
    sent: int = 0
    received: int = 0
    cost: float = 0.0
    price: float = 0.0
    unpriced: int = 0
    left: float | None = None
    seconds: float = 0.0
    running: tuple[RunningTask, ...] = ()

    @property
    def ready(self) -> int:
        """How many nodes run tasks: those that are ready or draining."""
        return sum(node.state in ("ready", "draining") for node in self.nodes)

    @property
    def slots(self) -> int:
        """How many tasks the pool runs at once."""
        return sum(node.slots for node in self.nodes)

    @property
    def busy(self) -> int:
        """How many slots run a task."""
        return sum(node.busy for node in self.nodes)

    def _repr_html_(self) -> str:
        """How notebooks show it."""
        head = "<br>".join(in_html(line) for line in self._head())
        return f"<div>{head}{''.join(html_table(*table) for table in self._tables())}</div>"

    def __repr__(self) -> str:
        lines = self._head()
        for head, rows in self._tables():
            lines += ["", *text_table(head, rows)] if rows else []
        return shown("\n".join(lines))

    def _tables(self) -> list[tuple[Sequence[str], list[list[str]]]]:
        longest = [_running_row(task) for task in self.running[:_MAX_RUNNING] if task.seconds >= 1]
        nodes, functions = map(_node_row, self.nodes), map(_function_row, self.functions)
        return [(_NODES, list(nodes)), (_FUNCTIONS, list(functions)), (_RUNNING, longest)]

    @property
    def headline(self) -> str:
        """The pool in a line: nodes, slots, and for how long it has been open."""
        draining = " draining" if any(node.state == "draining" for node in self.nodes) else ""
        text = f"{self.name} at {self.provider}: {self.ready} of {self.wanted} nodes{draining}, "
        text += f"{self.busy} of {self.slots} slots busy"
        text += f", {self.lost} lost" if self.lost else ""
        return f"{text}, for {duration(self.seconds)}"

    def _head(self) -> list[str]:
        lines = [self.headline, f"tasks: {self.tasks}; {self.rate:.3g}/s"]
        if self.left and self.tasks.unfinished:
            lines[1] += f"; about {duration(self.left)} left"
        if self.cost or self.price:
            unknown = f", and {self.unpriced} machines of unknown price" if self.unpriced else ""
            lines.append(f"cost: ${self.cost:.4f} so far, ${self.price:.4g}/h{unknown}")
        return lines


_MAX_RUNNING = 5
_NODES = "node", "state", "busy", "done", "failed", "cpu", "memory", "machine"
_FUNCTIONS = "function", "unfinished", "done", "failed", "mean"
_RUNNING = "running longest", "where", "for"


def duration(seconds: float) -> str:
    """A time in words, such as ``"42 s"``, ``"1 min 5 s"`` or ``"2 h 10 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _node_row(node: NodeStatus) -> list[str]:
    load = node.load or NodeLoad(node.name)
    cpu = "" if load.cpu is None else f"{load.cpu:.0%}"
    used, total = load.memory_used, load.memory_total
    memory = "" if used is None or total is None else f"{used / 2**30:.1f} of {total / 2**30:.1f} GiB"
    price = f", ${node.price:.4g}/h" if node.price else ""
    where = f" in {node.region}" if node.region else ""
    names = " ".join(dict.fromkeys((node.provider, node.type)))  # this machine is called "local" by both
    machine = f"{names}{' spot' if node.spot else ''}{where}{price}"
    state = f"{node.state}: {node.detail.partition(chr(10))[0]:.60}" if node.detail else node.state
    busy = f"{node.busy} of {node.slots}"
    return [node.name, state, busy, str(node.done), str(node.failed), cpu, memory, machine]


def _function_row(each: FunctionStatus) -> list[str]:
    mean = "" if each.mean is None else f"{each.mean:.3g} s"
    return [each.label, str(each.unfinished), str(each.done), str(each.failed), mean]


def _running_row(task: RunningTask) -> list[str]:
    what = f"{task.label} (a batch of {task.count})" if task.count > 1 else task.label
    where = f"{task.node}, slot {task.slot}" if task.slot >= 0 else task.node
    return [what, where, duration(task.seconds)]

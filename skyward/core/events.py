"""Events of a pool: frozen facts, and a way to subscribe to them.

Those emitted for each task are named tuples, which take a quarter of the time to create; all others are dataclasses.

The pool emits; the console and dashboards only listen. A listener is called in the thread in which the event occurred
(usually the I/O thread), so it must be quick, must not block and must not call the pool.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, Union

from skyward.core.billing import BY_THE_SECOND, Billing
from skyward.core.gpus import Gpu

__all__ = [
    "AtPrompt",
    "Event",
    "Events",
    "Listener",
    "MachineEnded",
    "MachineInfo",
    "MachineMade",
    "Machines",
    "NodeBegun",
    "NodeGone",
    "NodeLoad",
    "NodeReady",
    "NodeStep",
    "Note",
    "PoolClosed",
    "PoolDraining",
    "PoolReady",
    "PoolStarted",
    "Printed",
    "TaskEnded",
    "TasksQueued",
    "Transferred",
]

_log = logging.getLogger("skyward.events")


@dataclass(frozen=True, slots=True)
class PoolStarted:
    """The pool starts to provision its nodes. `concurrency` is 0 if each node has as many slots as its GPUs allow."""

    pool: str
    provider: str
    nodes: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """What is known of a machine when it is ordered.

    Attributes
    ----------
    provider
        Name of its provider.
    type
        The provider's name for the machine's type; for a host that is not rented, its own name.
    price
        US dollars per hour; 0 for one that is not rented, None if not known.
    spot
        Whether the provider may preempt it.
    region
        Region, zone or country, as the provider names it.
    billing
        The minimum time billed, and the billing unit.
    """

    provider: str = ""
    type: str = ""
    price: float | None = None
    spot: bool = False
    region: str | None = None
    billing: Billing = BY_THE_SECOND


@dataclass(frozen=True, slots=True)
class MachineMade:
    """A machine was rented.

    Attributes
    ----------
    id
        The provider's name for it.
    info
        What is known of it.
    age
        Seconds since it was ordered; its cost is counted from then on.
    """

    id: str
    info: MachineInfo
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class MachineEnded:
    """The provider has agreed to terminate a rented machine, which costs nothing from now on."""

    id: str
    provider: str


@dataclass(frozen=True, slots=True)
class NodeBegun:
    """A machine has an address, and is now being prepared as a node."""

    node: str
    info: MachineInfo


@dataclass(frozen=True, slots=True)
class NodeStep:
    """Progress while a node starts: `step` is a short phrase such as ``"connecting"``."""

    node: str
    step: str


@dataclass(frozen=True, slots=True)
class Machines:
    """Counts of machines that are being ordered, booting, or being released."""

    ordered: int = 0
    booting: int = 0
    ending: int = 0


@dataclass(frozen=True, slots=True)
class NodeReady:
    """A node is ready to run tasks.

    Attributes
    ----------
    node, slots
        Its name, and how many tasks it runs at once.
    gpus
        Those of its slots, if these have GPUs of their own.
    info
        Its machine, as in `NodeBegun`.
    cores, memory
        How many cores tasks can use, and the machine's memory in bytes; None if not reported.
    """

    node: str
    slots: int
    gpus: tuple[Gpu, ...] = ()
    info: MachineInfo = MachineInfo()
    cores: int | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """A node's load, which each node reports a few times a minute. What it can't determine is None.

    Attributes
    ----------
    node
        Its name.
    cpu
        Share of its cores that was busy since the last report, from 0 to 1, counting all processes.
    cores
        How many cores tasks can use; in a container, the container's limit.
    memory_used, memory_total
        In bytes; in a container, the container's. Memory that the kernel can reclaim counts as free.
    disk_free
        Free bytes on the disk of the tasks' working directory.
    gpus
        Those of its slots, if these have GPUs of their own, with their usage.
    problem
        Why GPU usage is not known, in words; empty if it is.
    """

    node: str
    cpu: float | None = None
    cores: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    disk_free: int | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node was lost for `reason`, or was released (`reason` is None)."""

    node: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Transferred:
    """A large array, or a part of a folder or of the user's code, has arrived on a node; tasks may have waited for it.

    Arrays and results under 1 MiB travel with their tasks. Nodes on this machine read large arrays where they are, so
    nothing is transferred.

    Attributes
    ----------
    node, size
        Where it arrived, and its size in bytes.
    peer
        The node that it came from; empty if this program sent it.
    began, seconds
        When the transfer was planned, by this process's ``time.monotonic()``, and how long it took.
    """

    node: str
    size: int
    peer: str
    began: float
    seconds: float


@dataclass(frozen=True, slots=True)
class PoolReady:
    """The minimum number of nodes is ready; the ``with`` block starts."""

    slots: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AtPrompt:
    """The pool was opened without a ``with`` in an interactive interpreter, whose prompt follows.

    From now on the user types there, so nothing may be redrawn.
    """


class TasksQueued(NamedTuple):
    """A task, or a batch of `count` tasks, was submitted. For joblib, `count` is the size of the batch, not 1.

    `label` names the function, as in `TaskEnded`.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, which is not needed
    label: str = ""


class TaskEnded(NamedTuple):
    """A task, or a batch of tasks, ended.

    Attributes
    ----------
    count
        How many of the user's tasks it consists of.
    seconds
        How long it ran, as measured on its slot; 0 if it did not run.
    ok, cancelled
        `ok` is False if it failed or was cancelled; `cancelled` tells the two apart.
    node
        Where it ran last; empty if nowhere.
    slot
        Which of the node's slots ran it, from 0; two tasks never run in one slot at the same time. -1 if not known.
    label
        Its function, by name. Batches of several calls are named after the first.
    error
        Type and first line of the message of its exception; None if it did not fail.
    started
        When it began, by this process's ``time.monotonic()``: the arrival of its answer minus `seconds`, and so too
        late by the time that the answer was on its way. None if it did not run to its end.
    sent, received
        Bytes of the pickled call and result. Arrays of 1 MB and more that a call needs are not included, since they go
        to each node once and not with each task: see `Transferred`.
    exception
        Its exception, with the traceback; None if it did not fail. It may hold large objects: don't keep it.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, which is not needed
    seconds: float
    ok: bool
    cancelled: bool = False
    node: str = ""
    slot: int = -1
    label: str = ""
    error: str | None = None
    started: float | None = None
    sent: int = 0
    received: int = 0
    exception: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Printed:
    """Tasks on a node printed whole lines to `stream`: 1 is stdout, 2 is stderr."""

    node: str
    stream: int
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A message to the user; `warning` marks those that may need action."""

    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class PoolDraining:
    """The block has ended with tasks left: the nodes finish these, and no others are accepted."""


@dataclass(frozen=True, slots=True)
class PoolClosed:
    """The pool has ended, and everything it used was released."""

    seconds: float


Event: TypeAlias = Union[
    PoolStarted,
    Machines,
    MachineMade,
    MachineEnded,
    NodeBegun,
    NodeStep,
    NodeReady,
    NodeLoad,
    NodeGone,
    Transferred,
    PoolReady,
    AtPrompt,
    TasksQueued,
    TaskEnded,
    Printed,
    Note,
    PoolDraining,
    PoolClosed,
]

Listener: TypeAlias = Callable[[Event], None]


class Events:
    """The listeners of one pool."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards changes to what follows; garbage collection may unsubscribe within
        self._listeners: tuple[tuple[Listener, tuple[type[Event], ...] | None], ...] = ()
        self._of: dict[type[Event], tuple[Listener, ...]] = {}  # event class -> its listeners, filled by `emit`

    def subscribe(self, listener: Listener, kinds: Iterable[type[Event]] | None = None) -> Callable[[], None]:
        """Call `listener` with each event, or those of some kinds, until the function that is returned is called."""
        entry = listener, None if kinds is None else tuple(kinds)
        with self._lock:
            self._listeners, self._of = (*self._listeners, entry), {}

        def unsubscribe() -> None:
            with self._lock:
                self._listeners, self._of = tuple(each for each in self._listeners if each is not entry), {}

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Call all listeners. If one raises, that is logged and does not affect the pool.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C arrived while a listener ran in the main thread. All listeners have been called.
        """
        interrupt: KeyboardInterrupt | None = None
        try:
            listeners = self._of[type(event)]
        except KeyError:
            listeners = self._listeners_for(type(event))
        for listener in listeners:
            try:
                listener(event)
            except KeyboardInterrupt as error:
                interrupt = error
            except BaseException:  # SystemExit too, which would end the loop
                _log.exception("a listener failed on %r", event)
        if interrupt is not None:
            raise interrupt

    def _listeners_for(self, kind: type[Event]) -> tuple[Listener, ...]:
        with self._lock:
            of = self._of  # replaced when somebody unsubscribes, which may happen in the next line
            found = of[kind] = tuple(listener for listener, kinds in self._listeners if kinds is None or kind in kinds)
            return found

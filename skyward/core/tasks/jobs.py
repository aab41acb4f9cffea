"""What is to be run, and how: a task from its submit until it settles, and the group that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from skyward.core.blobs.array_cache import ArrayCache
from skyward.core.payload import pickling
from skyward.core.payload.surroundings import Change
from skyward.core.protocol import messages
from skyward.core.protocol.wire import Filled
from skyward.core.tasks.delivery import DeliveryQueue
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.schedule_events import Verdict

__all__ = ["Job", "TaskGroup", "TaskOptions"]


@dataclass(eq=False)
class TaskGroup:
    """A group of tasks, such as those of one ``Parallel`` call.

    Parameters
    ----------
    limit
        How many of its tasks may run at a time; below 0, all slots that there are but so many; None for no limit.
    change
        The surroundings in which its tasks run; None for those at each one's submit. See `Dispatcher.surroundings`.
    arrays
        Large arrays that several of its tasks have; see `Dispatcher.arrays`. None to read each one for each task.

    Notes
    -----
    Callbacks of one call's futures run one after another, those of different calls independently.
    """

    limit: int | None = None
    lane: DeliveryQueue = field(default_factory=DeliveryQueue, repr=False)
    arrays: ArrayCache | None = field(default=None, repr=False)
    change: Change | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How one task is to run.

    Parameters
    ----------
    group
        The group it belongs to; None for the pool's common one.
    isolated
        In a process of its own; None for the pool's default.
    timeout
        Seconds it may run; None for no limit; ``"pool"`` for the pool's.
    attempts
        How often it may be started when its process or node dies; None for the pool's.
    threads
        BLAS/OpenMP threads; None for the slot's default.
    node
        Name of the node it must run on.
    large
        Arrays of at least so many bytes arrive as memory maps; None for never.
    mode
        Of those maps: ``"r"`` read-only, ``"c"`` copy-on-write; ``"r+"`` is the latter, with a warning.
    count
        How many tasks of the user this one stands for.
    proxies
        Of Managers, that the call holds where pickling does not see them.
    """

    group: TaskGroup | None = None
    isolated: bool | None = None
    timeout: float | Literal["pool"] | None = "pool"
    attempts: int | None = None
    threads: int | None = None
    node: str | None = None
    large: int | None = pickling.LARGE
    mode: str = "c"
    count: int = 1
    proxies: Sequence[Any] = ()


@dataclass(slots=True, eq=False)
class Job:
    """A task on its way."""

    id: int
    label: str
    future: TaskFuture[Any]
    options: TaskOptions
    lane: DeliveryQueue
    timeout: float | None
    buffers: list[Any]  # head, then the out-of-band buffers
    blobs: dict[int, bytes]  # index of the out-of-band buffer -> its digest
    answer: tuple[messages.Done | messages.Failed, list[Filled]] | None = None
    error: BaseException | None = None  # why it could not be sent
    verdict: Verdict | None = None
    authkey: bytes = b""  # that the call's proxies of Managers need
    node: str = ""
    is_here: bool = False  # whether that node uses this program's environment
    number: int = 0  # of the message that took it there
    began: float = 0.0  # when its node said that it had, by time.monotonic
    withdrawn: bool = False  # nobody wants it if it has not begun
    reason: str = ""

"""What is to be run, and how: a task from its submission until it settles, and the group it belongs to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from skyward.core.blobs.array_cache import ArrayCache
from skyward.core.code.local_code import CodeVersion
from skyward.core.payload import pickling
from skyward.core.payload.surroundings import Change
from skyward.core.protocol import messages
from skyward.core.protocol.wire import Filled
from skyward.core.tasks.delivery import DeliveryQueue
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.schedule_events import Verdict

__all__ = ["Job", "Keeper", "KeptCall", "TaskGroup", "TaskOptions"]


@dataclass(eq=False)
class TaskGroup:
    """A group of tasks, such as those of one ``Parallel`` call.

    Parameters
    ----------
    limit
        Maximum number of its tasks that run at once; None for no limit. A negative limit is relative to the number of
        slots: -1 leaves one slot to others.
    change
        The surroundings in which its tasks run; None for those at the submission of each task. See
        `Dispatcher.surroundings`.
    code
        The version of the user's code that its tasks run with; None for the latest at the submission of each task.
    arrays
        Cache for large arrays that several of its tasks have; see `Dispatcher.arrays`. None to hash every array for
        every task.

    Notes
    -----
    Callbacks of one group's futures run one after another, those of different groups independently.
    """

    limit: int | None = None
    lane: DeliveryQueue = field(default_factory=DeliveryQueue, repr=False)
    arrays: ArrayCache | None = field(default=None, repr=False)
    change: Change | None = field(default=None, repr=False)
    code: CodeVersion | None = field(default=None, repr=False)


class Keeper(ABC):
    """Takes a task's answer before its future is completed, in a delivery thread; see `Completion`.

    Attributes
    ----------
    seconds
        How long those calls of the task once ran that were not run now.
    """

    __slots__ = ("seconds",)

    seconds: float

    def number(self, position: int) -> int:
        """Which of the user's calls a call of the task is, if only some of them are run."""
        return position

    @abstractmethod
    def merge(
        self, job: Job, answer: Any, read: Callable[[Sequence[Any]], tuple[Any, BaseException | None]]
    ) -> tuple[Any, BaseException | None]:
        """Turn what a node has returned into the task's result, or the exception to be raised instead.

        Parameters
        ----------
        job
            The task.
        answer
            What the node has returned, which may be anything.
        read
            Reads a pickle and its buffers with the care that is due to this node.
        """


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How one task is to run.

    Parameters
    ----------
    group
        The group it belongs to; None for the pool's default group.
    isolated
        Whether it needs a process of its own; None for the pool's default.
    timeout
        Maximum running time in seconds; None for no limit; ``"pool"`` for the pool's default.
    attempts
        Maximum number of starts, if its process or node dies; None for the pool's default.
    threads
        BLAS/OpenMP threads; None for the slot's default.
    node
        Name of the node it must run on.
    large
        Arrays of at least this many bytes arrive as memory maps; None for never.
    mode
        Mode of those maps: ``"r"`` read-only, ``"c"`` copy-on-write; ``"r+"`` is the latter, with a warning.
    count
        How many of the user's tasks this one consists of.
    proxies
        Proxies of Managers that the call contains, where pickling does not find them.
    keeper
        Takes the answer; None for nothing.
    whole
        The same object for all tasks of one ``map`` or the like; None for tasks by themselves.
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
    keeper: Keeper | None = None
    whole: object = None


class KeptCall(Protocol):
    """One call whose result is kept. Its methods may read and write files, and are called by one thread at a time."""

    @property
    def key(self) -> Hashable:
        """A key that calls with the same result share."""
        ...

    @property
    def function(self) -> Callable[..., Any]:
        """What computes the result in a slot, from the arguments of the call."""
        ...

    def find(self) -> tuple[Any] | None:
        """Return the result if it is kept. May raise anything; then that is the outcome of the call."""
        ...

    def detach(self) -> None:
        """Remember what is needed of the arguments, which the caller may change from now on."""
        ...

    def keep(self, result: Any, seconds: float) -> Any:
        """Keep a result that took so long, and return what the caller gets. Must not raise."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """A task that has not settled yet, or whose future is not completed yet."""

    id: int
    label: str  # its function
    future: TaskFuture[Any]
    options: TaskOptions
    group: TaskGroup
    timeout: float | None
    buffers: list[Any]  # head, then the out-of-band buffers
    blobs: dict[int, bytes]  # index of an out-of-band buffer -> its digest
    answer: tuple[messages.Done | messages.Failed, list[Filled]] | None = None
    error: BaseException | None = None  # why it could not be sent
    verdict: Verdict | None = None
    authkey: bytes = b""  # for the proxies of Managers in the call
    node: str = ""
    is_here: bool = False  # whether that node uses this program's environment
    number: int = 0  # of the message that it was sent in
    began: float = 0.0  # when its node reported that it had begun, by the loop's clock
    ended: float = 0.0  # when its answer arrived, by the same
    slot: int = -1  # of the node, from 0
    withdrawn: bool = False  # not wanted unless it has begun
    alone: bool = False  # whether its process is to run nothing else
    note: str = ""  # what was tried, without success, to run it
    first: int = -1  # number of its first call among those that were submitted together; -1: it is by itself
    code: CodeVersion | None = None  # of the user's own code, if there is any
    kept: KeptCall | None = None  # keeps its result, until it has ended; see kept_calls.py
    looks: bool = False  # it has waited for an equal one, and is to look for the result before it is run
    found: tuple[Any] | None = None  # its result, if that was kept
    outcome: tuple[Any, BaseException | None] | None = None  # result or error, if it was looked at before its turn

    @property
    def title(self) -> str:
        """Its name in messages: the function, and how many of the user's tasks it consists of."""
        count = self.options.count
        return f"{self.label} (a batch of {count})" if count > 1 else self.label

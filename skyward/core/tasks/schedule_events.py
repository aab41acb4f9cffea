"""What the schedule is told, and what it wants done: plain values, without a decision in them."""

from __future__ import annotations

import enum
from typing import NamedTuple, TypeAlias, Union

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
    "Settle",
    "Stop",
    "Submitted",
    "Verdict",
    "Withdraw",
    "Withdrawn",
]


class Outcome(enum.Enum):
    """How a run on a node ended."""

    ANSWERED = "answered"  # a result, or an error that is the task's own: final
    CRASHED = "crashed"  # its process died, and it was alone there
    SHARED_CRASH = "shared-crash"  # its process died, and others ran there too
    REFUSED = "refused"  # the node could not begin it
    STOPPED = "stopped"  # as `Stop` asked


class Verdict(enum.Enum):
    """What becomes of a task."""

    ANSWERED = "answered"  # hand over what the node said
    CRASHED = "crashed"  # its process died as often as it may be tried
    REFUSED = "refused"  # no node that is up can begin it
    NODE_LOST = "node-lost"  # its node died as often as it may be tried, or the only node it may run on
    HOPELESS = "hopeless"  # no node is left and none will come
    CANCELLED = "cancelled"


# --- events ---------------------------------------------------------------------------------------------------------


class Submitted(NamedTuple):
    """A new task. `call` groups tasks; `limit` is how many of the call may run at a time; `node` pins it.

    A limit below 0 is counted from the slots that there are: -1 leaves one of them to others. One task may always run.
    """

    task: int
    call: int
    limit: int | None = None
    node: str | None = None
    attempts: int = 4


class Cancelled(NamedTuple):
    """Nobody wants the task any more. No effect on one that has settled."""

    task: int


class Withdrawn(NamedTuple):
    """The task shall be cancelled if it has not begun; one that has goes on, again too if its process dies."""

    task: int


class Began(NamedTuple):
    """These tasks run on the node. Said of those that run for a while only."""

    node: str
    tasks: list[int]


class NodeUp(NamedTuple):
    """A node takes tasks. A name is never used again after `NodeDown`."""

    node: str
    slots: int


class NodeDown(NamedTuple):
    """A node is gone for good, and what ran there too; unless `begun`, nothing of what is out there has begun."""

    node: str
    begun: bool = True


class Finished(NamedTuple):
    """A run ended. `seconds`: how long it ran; `overhead`: the round trip to the node; None where unknown.

    Ignored unless the task is out at that node, so a late word of a lost node does no harm.
    """

    task: int
    node: str
    outcome: Outcome
    seconds: float | None = None
    overhead: float | None = None


class Returned(NamedTuple):
    """The node gave these tasks back without having begun them: its answer to `Recall`, perhaps with none."""

    node: str
    tasks: list[int]


class Looked(NamedTuple):
    """Some time has passed since `Look`."""


class Hopeless(NamedTuple):
    """No node is up, and none will come: what waits can't run. Tasks that are submitted later fare the same."""


Event: TypeAlias = Union[Submitted, Cancelled, Withdrawn, Began, NodeUp, NodeDown, Finished, Returned, Looked, Hopeless]

# --- commands -------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Send the task to the node; `alone`: in a process where nothing else runs."""

    node: str
    task: int
    alone: bool


class Stop(NamedTuple):
    """Tell the node to stop the task. It counts as out there until the node says `Finished`."""

    node: str
    task: int


class Withdraw(NamedTuple):
    """Tell the node to stop the task if it has not begun. `Finished` is expected either way."""

    node: str
    task: int


class Recall(NamedTuple):
    """Ask the node for tasks that it has not begun, so many at most. `Returned` is expected."""

    node: str
    most: int


class Expel(NamedTuple):
    """The node has done nothing but fail, so many runs in a row: make it go. It gets no more; say `NodeDown`."""

    node: str
    failed: int


class Look(NamedTuple):
    """Say `Looked` in a moment."""


class Settle(NamedTuple):
    """The task is over; tell whoever waits for it. Comes once for each task."""

    task: int
    verdict: Verdict


Command: TypeAlias = Union[Run, Stop, Withdraw, Recall, Expel, Look, Settle]

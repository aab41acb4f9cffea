"""Events that the schedule handles and the commands it returns: plain values, no decisions."""

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
    "NodeDown",
    "NodeUp",
    "Outcome",
    "Recall",
    "Returned",
    "Run",
    "Settle",
    "StartTimer",
    "Stop",
    "Submitted",
    "TimerFired",
    "Verdict",
    "Withdraw",
    "Withdrawn",
]


class Outcome(enum.Enum):
    """How a run on a node ended."""

    ANSWERED = "answered"  # a result, or an error raised by the task itself: final
    CRASHED = "crashed"  # its process died while running nothing else
    SHARED_CRASH = "shared-crash"  # its process died while running other tasks too
    REFUSED = "refused"  # the node could not start it
    STOPPED = "stopped"  # as requested by `Stop`


class Verdict(enum.Enum):
    """How a task settles."""

    ANSWERED = "answered"  # deliver the node's answer
    CRASHED = "crashed"  # its process died and no attempts are left
    REFUSED = "refused"  # none of the nodes that are up can start it
    NODE_LOST = "node-lost"  # its node was lost and no attempts are left, or it may run on no other node
    HOPELESS = "hopeless"  # no node is left and none will come
    CANCELLED = "cancelled"


# --- events ---------------------------------------------------------------------------------------------------------


class Submitted(NamedTuple):
    """A new task.

    Attributes
    ----------
    task
        Its name.
    group
        The group of tasks it belongs to.
    limit
        Maximum number of the group's tasks that run at once; None for no limit. A negative limit is relative to the
        number of slots: -1 leaves one slot to others. One task may always run.
    node
        The only node it may run on; None for any.
    attempts
        Maximum number of starts.
    """

    task: int
    group: int
    limit: int | None = None
    node: str | None = None
    attempts: int = 4


class Cancelled(NamedTuple):
    """The task is no longer wanted. No effect on a task that has settled."""

    task: int


class Withdrawn(NamedTuple):
    """Cancel the task unless it has begun; a task that has begun continues, and is retried if its process dies."""

    task: int


class Began(NamedTuple):
    """These tasks are running on the node. Reported only for tasks that run for a while."""

    node: str
    tasks: list[int]


class NodeUp(NamedTuple):
    """A node accepts tasks. Names are not reused after `NodeDown`."""

    node: str
    slots: int


class NodeDown(NamedTuple):
    """A node is gone for good, with everything that ran there.

    With `begun` False, none of the tasks on the node had begun, so these starts do not count.
    """

    node: str
    begun: bool = True


class Finished(NamedTuple):
    """A run ended.

    Ignored unless the task is out at that node, so a late message of a lost node does no harm.

    Attributes
    ----------
    task, node, outcome
        Which task ended where, and how.
    seconds
        How long it ran; None if unknown.
    overhead
        Seconds that it takes to bring a task to the node; None if unknown.
    """

    task: int
    node: str
    outcome: Outcome
    seconds: float | None = None
    overhead: float | None = None


class Returned(NamedTuple):
    """The node returned these tasks unstarted: the answer to `Recall`, possibly empty."""

    node: str
    tasks: list[int]


class TimerFired(NamedTuple):
    """The timer started by `StartTimer` has fired."""


class Hopeless(NamedTuple):
    """No node is up and none will come: waiting tasks can't run, and neither can tasks submitted later.

    While nodes are up, it has no effect unless these are `ending`: then it stops what runs there.
    """

    ending: bool = False


Event: TypeAlias = Union[
    Submitted, Cancelled, Withdrawn, Began, NodeUp, NodeDown, Finished, Returned, TimerFired, Hopeless
]

# --- commands -------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Send the task to the node; with `alone`, into a process that runs nothing else."""

    node: str
    task: int
    alone: bool


class Stop(NamedTuple):
    """Tell the node to stop the task. It counts as out until `Finished` arrives."""

    node: str
    task: int


class Withdraw(NamedTuple):
    """Tell the node to stop the task if it has not begun. `Finished` is expected either way."""

    node: str
    task: int


class Recall(NamedTuple):
    """Ask the node for up to `limit` tasks that it has not begun. `Returned` is expected."""

    node: str
    limit: int


class Expel(NamedTuple):
    """Remove a node whose last `failures` runs all failed. It gets no more tasks; `NodeDown` is expected."""

    node: str
    failures: int


class StartTimer(NamedTuple):
    """Send `TimerFired` after a moment."""


class Settle(NamedTuple):
    """The task is over; report it to those who wait for it. Returned exactly once for each task."""

    task: int
    verdict: Verdict


Command: TypeAlias = Union[Run, Stop, Withdraw, Recall, Expel, StartTimer, Settle]

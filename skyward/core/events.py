"""What happened in a pool: frozen facts, and a way to hear them.

The pool emits; the console, the command line and dashboards only listen. A listener is called from whichever thread
the fact arose in (mostly the I/O thread), so it must be quick, must not block and must not call the pool.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, Union

__all__ = [
    "Event",
    "Events",
    "Machines",
    "NodeGone",
    "NodeReady",
    "NodeStep",
    "Note",
    "PoolClosed",
    "PoolReady",
    "PoolStarted",
    "Printed",
    "TaskEnded",
    "TasksQueued",
]

_log = logging.getLogger("skyward.events")


@dataclass(frozen=True, slots=True)
class PoolStarted:
    """The pool begins to get its nodes."""

    pool: str
    provider: str
    nodes: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class NodeStep:
    """A node gets on with its start: `step` is a short phrase such as ``"connecting"``."""

    node: str
    step: str


@dataclass(frozen=True, slots=True)
class Machines:
    """So many machines are no nodes yet, or no more: they are ordered, they boot, they are given back."""

    ordered: int = 0
    booting: int = 0
    ending: int = 0


@dataclass(frozen=True, slots=True)
class NodeReady:
    """A node takes tasks from now on."""

    node: str
    slots: int


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node is lost, or was given back (`reason` is None)."""

    node: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class PoolReady:
    """Enough nodes are ready; the block of the ``with`` begins."""

    slots: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TasksQueued:
    """So many more tasks wait or run. For joblib, `count` is the tasks of a batch, not 1."""

    count: int


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A task (or a batch of `count`) settled after `seconds` of running on a slot.

    `ok` is False if it failed; `cancelled` says that nobody wanted it any more, which is no failure.
    """

    count: int
    seconds: float
    ok: bool
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Printed:
    """Tasks on a node printed whole lines; `stream` is 1 or 2."""

    node: str
    stream: int
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should read; `warning` marks the ones that may need action."""

    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class PoolClosed:
    """Everything was given back."""

    seconds: float


Event: TypeAlias = Union[
    PoolStarted, Machines, NodeStep, NodeReady, NodeGone, PoolReady, TasksQueued, TaskEnded, Printed, Note, PoolClosed
]

Listener: TypeAlias = Callable[[Event], None]


class Events:
    """The listeners of one pool."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards changes of _listeners; garbage collection may end one within another
        self._listeners: tuple[Listener, ...] = ()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every event from now on; the returned function ends that."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(item for item in self._listeners if item is not listener)

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Tell all listeners. One that raises is logged and does not disturb the pool.

        Raises
        ------
        KeyboardInterrupt
            The user's, which met a listener in the main thread. All have been told.
        """
        interrupt: KeyboardInterrupt | None = None
        for listener in self._listeners:
            try:
                listener(event)
            except KeyboardInterrupt as error:
                interrupt = error
            except BaseException:  # one that exits would take the loop along
                _log.exception("a listener failed on %r", event)
        if interrupt is not None:
            raise interrupt

"""Events of a pool: frozen facts, and a way to subscribe to them.

The pool emits; the console and dashboards only listen. A listener is called from the thread in which the event arose
(usually the I/O thread), so it must be quick, must not block and must not call the pool.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, Union

from skyward.core.gpus import Gpu

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
    """The pool starts to provision its nodes. `concurrency` is 0 if each node has as many slots as it has GPUs for."""

    pool: str
    provider: str
    nodes: int
    concurrency: int


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
    """A node is ready to run tasks. `gpus` are those of its slots, if these have GPUs of their own."""

    node: str
    slots: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node was lost for `reason`, or was released (`reason` is None)."""

    node: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class PoolReady:
    """The minimum of nodes is ready; the ``with`` block starts."""

    slots: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TasksQueued:
    """A task, or a batch of `count` tasks, was submitted. For joblib, `count` is the size of the batch, not 1."""

    count: int


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A task (or a batch of `count`) ended after running on a slot for `seconds`.

    `ok` is False if it failed or was cancelled; `cancelled` tells the two apart.
    """

    count: int
    seconds: float
    ok: bool
    cancelled: bool = False


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
class PoolClosed:
    """The pool has ended, and everything it used was released."""

    seconds: float


Event: TypeAlias = Union[
    PoolStarted, Machines, NodeStep, NodeReady, NodeGone, PoolReady, TasksQueued, TaskEnded, Printed, Note, PoolClosed
]

Listener: TypeAlias = Callable[[Event], None]


class Events:
    """The listeners of one pool."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards changes to _listeners; reentrant, as garbage collection may unsubscribe
        self._listeners: tuple[Listener, ...] = ()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every event from now on; the returned function unsubscribes it."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(item for item in self._listeners if item is not listener)

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Call all listeners. If one raises, that is logged and does not affect the pool.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C arrived while a listener ran in the main thread. All listeners have been called.
        """
        interrupt: KeyboardInterrupt | None = None
        for listener in self._listeners:
            try:
                listener(event)
            except KeyboardInterrupt as error:
                interrupt = error
            except BaseException:  # SystemExit too, which would end the loop
                _log.exception("a listener failed on %r", event)
        if interrupt is not None:
            raise interrupt

"""The open pools, and which of them a backend refers to that was given only by name. Does not import joblib.

A thread's own innermost pool comes first, then the pool that any thread entered last. In a slot of a node there is
usually none, and a task that names the backend gets the cores of its slot instead.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skyward.core.errors import PoolNotActive

if TYPE_CHECKING:  # nodes import this module too, and need no pool
    from skyward.core.pool import Compute

__all__ = [
    "OpenEntry",
    "current",
    "current_entry",
    "entered",
    "find",
    "inherited",
    "is_any_open",
    "on_node",
    "set_on_node",
]


@dataclass(eq=False)
class OpenEntry:
    """A pool that is open.

    Attributes
    ----------
    reference
        The pool.
    thread
        The thread that entered it.
    plugged
        Whether it is joblib's backend in that thread.
    warned
        Whether the user knows that some ``Parallel`` does not use it.
    """

    reference: weakref.ref[Compute]
    thread: threading.Thread
    plugged: bool
    warned: bool = False

    @property
    def pool(self) -> Compute | None:
        """The pool, unless it is closed or gone."""
        pool = self.reference()
        return pool if pool is not None and pool.is_active else None


_lock = threading.Lock()  # guards _entered
_entered: list[OpenEntry] = []
_node = threading.Event()
_context: ContextVar[OpenEntry | None] = ContextVar("skyward_pool", default=None)


@contextlib.contextmanager
def entered(pool: Compute, *, plugged: bool, on_last: Callable[[], object]) -> Iterator[None]:
    """Count a pool as open. Pools may end in any order and in any thread.

    Parameters
    ----------
    pool
        The pool.
    plugged
        Whether it is joblib's backend in this thread, and so in everything that inherits this thread's context.
    on_last
        Called at the end if no other pool is open, before one can be entered.
    """
    entry = OpenEntry(weakref.ref(pool), threading.current_thread(), plugged)
    del pool  # this frame lives as long as the pool is open; a pool that is dropped must still be collected
    with _lock:
        for other in _entered if plugged else ():
            other.warned |= other.reference is entry.reference  # a user who plugs it in has not forgotten to
        _entered.append(entry)
    token = _context.set(entry) if plugged else None
    try:
        yield
    finally:
        if token is not None:
            with contextlib.suppress(ValueError):  # closed in another context, where it was not set
                _context.reset(token)
        with _lock:
            _entered[:] = [other for other in _entered if other is not entry]
            if not _entered:
                on_last()


def is_any_open() -> bool:
    """Whether any pool is open in this process."""
    return bool(_entered)


def current_entry() -> OpenEntry | None:
    """Return the pool that a backend's name refers to here, with what is known of it; None if none is open."""
    me = threading.current_thread()
    with _lock:
        entries = [entry for entry in reversed(_entered) if entry.pool is not None]
    return next((entry for entry in entries if entry.thread is me), next(iter(entries), None))


def find() -> Compute | None:
    """Return the pool that a backend's name refers to here; None if none is open."""
    entry = current_entry()
    return None if entry is None else entry.pool


def inherited() -> Compute | None:
    """Return the pool in whose block this context began, though possibly in another thread."""
    entry = _context.get()
    return None if entry is None else entry.pool


def current() -> Compute:
    """Return the pool that a backend's name refers to here.

    Raises
    ------
    PoolNotActive
        No pool is open.
    """
    pool = find()
    if pool is None:
        raise PoolNotActive(
            "Backend not configured: use the pool as a context manager, and joblib inside its block "
            "(with sky.Compute(..., plugins=[sky.plugins.joblib()]): Parallel(n_jobs=-1)(...))"
        )
    return pool


def set_on_node() -> None:
    """Mark this process as a slot of a node."""
    _node.set()


def on_node() -> bool:
    """Whether this process is a slot of a node."""
    return _node.is_set()

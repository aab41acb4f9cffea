"""Which pool a backend means that was named and not given one. Knows joblib only where it is loaded already.

A thread's own innermost pool comes first, then the one that was entered last by anybody. On a node there is none; there
a task that asks for this backend gets the cores of its slot instead.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from skyward.core.errors import PoolNotActive

if TYPE_CHECKING:  # nodes import this module too, and do without it
    from skyward.core.pool import Compute

__all__ = ["announce", "current", "entered", "find", "on_node", "set_on_node"]

_lock = threading.Lock()  # guards _entered
_entered: list[tuple[weakref.ref[Compute], threading.Thread]] = []
_node = threading.Event()


def announce() -> None:
    """Make the name ``"skyward"`` known to joblib, unless joblib is not loaded: then nobody has asked for it yet."""
    if "joblib" in sys.modules:
        importlib.import_module("skyward.joblib_ext.backend")


@contextlib.contextmanager
def entered(pool: Compute) -> Iterator[None]:
    """Count a pool as open. Pools may end in any order and in any thread."""
    announce()
    entry = (weakref.ref(pool), threading.current_thread())
    del pool  # this frame lives as long as the pool is open; a pool that is dropped must be collected all the same
    with _lock:
        _entered.append(entry)
    try:
        yield
    finally:
        with _lock:
            _entered[:] = [other for other in _entered if other is not entry]


def find() -> Compute | None:
    """The pool that is meant here; None when none is open."""
    me = threading.current_thread()
    with _lock:
        entries = list(_entered)
    last: Compute | None = None
    for reference, thread in reversed(entries):
        pool = reference()
        if pool is None or not pool.is_active:
            continue
        if thread is me:
            return pool
        last = last or pool
    return last


def current() -> Compute:
    """The pool that is meant here.

    Raises
    ------
    PoolNotActive
        None is open.
    """
    pool = find()
    if pool is None:
        raise PoolNotActive(
            "Backend not configured: use the pool as a context manager, and joblib inside its block "
            "(with sky.Compute(..., plugins=[sky.plugins.joblib()]): Parallel(n_jobs=-1)(...))"
        )
    return pool


def set_on_node() -> None:
    """Say that this process is a slot of a node; tasks here may name the backend, with or without a plugin."""
    if not _node.is_set():  # it is called for each batch
        _node.set()
        announce()


def on_node() -> bool:
    """Whether this process is a slot of a node."""
    return _node.is_set()

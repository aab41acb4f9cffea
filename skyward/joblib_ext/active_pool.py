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
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skyward.core.errors import PoolNotActive

if TYPE_CHECKING:  # nodes import this module too, and do without it
    from skyward.core.pool import Compute

__all__ = ["Entry", "announce", "current", "entered", "find", "inherited", "meant", "on_node", "set_on_node"]


@dataclass(eq=False)
class Entry:
    """A pool that is open.

    Attributes
    ----------
    thread
        That entered it.
    plugged
        Whether it is joblib's backend in that thread.
    told
        Whether the user knows that some ``Parallel`` does not use it.
    """

    reference: weakref.ref[Compute]
    thread: threading.Thread
    plugged: bool
    told: bool = False

    @property
    def pool(self) -> Compute | None:
        """The pool, unless it is closed or gone."""
        pool = self.reference()
        return pool if pool is not None and pool.is_active else None


_lock = threading.Lock()  # guards _entered
_entered: list[Entry] = []
_node = threading.Event()
_context: ContextVar[Entry | None] = ContextVar("skyward_pool", default=None)


def announce() -> None:
    """Make the name ``"skyward"`` known to joblib; if joblib is not loaded, when it is."""
    if "joblib.parallel" not in sys.modules:
        if _watch not in sys.meta_path:
            sys.meta_path.insert(0, _watch)
        return
    importlib.import_module("skyward.joblib_ext.backend")
    if _entered:
        importlib.import_module("skyward.joblib_ext.default_backend").install()


def _silence() -> None:
    """No pool is open any more."""
    with contextlib.suppress(ValueError):
        sys.meta_path.remove(_watch)
    if (default := sys.modules.get("skyward.joblib_ext.default_backend")) is not None:
        default.remove()


class _Watch:
    """A finder of modules that finds none, but sees that joblib is imported: then it is time to announce."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name != "joblib.parallel":
            return None
        sys.meta_path.remove(_watch)
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next(filter(None, found), None)
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                loader.exec_module = execute
                execute(module)
                announce()

            loader.exec_module = exec_module
        return spec


_watch: Any = _Watch()


@contextlib.contextmanager
def entered(pool: Compute, *, plugged: bool = False) -> Iterator[None]:
    """Count a pool as open. Pools may end in any order and in any thread.

    Parameters
    ----------
    plugged
        It is joblib's backend in this thread, and so in what takes this thread's context along.
    """
    entry = Entry(weakref.ref(pool), threading.current_thread(), plugged)
    del pool  # this frame lives as long as the pool is open; a pool that is dropped must be collected all the same
    with _lock:
        for other in _entered if plugged else ():
            other.told |= other.reference is entry.reference  # who names it does not forget it
        _entered.append(entry)
    announce()
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
                _silence()


def meant() -> Entry | None:
    """What is known of the pool that is meant here; None when none is open."""
    me = threading.current_thread()
    with _lock:
        entries = [entry for entry in reversed(_entered) if entry.pool is not None]
    return next((entry for entry in entries if entry.thread is me), next(iter(entries), None))


def find() -> Compute | None:
    """The pool that is meant here; None when none is open."""
    entry = meant()
    return None if entry is None else entry.pool


def inherited() -> Compute | None:
    """The pool in whose block this context began, though it may be in another thread now."""
    entry = _context.get()
    return None if entry is None else entry.pool


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

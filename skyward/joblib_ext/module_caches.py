"""Cached functions of the user's modules, which nodes import: they too use the driver's caches.

A module is sent as its files. ``memory = Memory("./cache")`` in it makes a cache of the node's own there, and no pickle
contains its functions. So each call is preceded by the rights to use those of the driver, and on a node a function of
that name takes the driver's store when it is first used.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from skyward.core.payload import pickling
from skyward.core.payload.forerunners import FORERUNNERS, SLOTS_ONLY

__all__ = ["Rights", "register"]

_lock = threading.Lock()  # guards PoolContext.guests["module caches"]
_taken: list[bytes] = []  # in a slot: the digest of the rights that it has


class Rights:
    """The stores of cached functions, by module and name. Loading its pickle makes them known to the process.

    Parameters
    ----------
    data
        Their pickle.
    """

    __slots__ = ("data", "key")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.key = hashlib.blake2b(data, digest_size=8).digest()

    def __repr__(self) -> str:
        return f"<Rights {self.key.hex()}>"

    def __reduce__(self) -> Any:
        return _take, (self.key, self.data)


pickling.PLAIN[Rights] = lambda rights: (rights.key, rights.data)


def _take(key: bytes, data: bytes) -> None:
    """Take rights in a slot, unless it has them; called by the pickle."""
    if key not in _taken:
        with contextlib.suppress(ImportError):  # the node lacks joblib, and so cached functions
            from skyward.joblib_ext import node_cache  # noqa: PLC0415 - see above

            node_cache.GRANTED.update(pickle.loads(data))
        _taken[:] = [key]


SLOTS_ONLY.add(_take)


# --- in the driver ----------------------------------------------------------------------------------------------------


class _Known:
    """What was found in the driver's modules the last time."""

    def __init__(self) -> None:
        self.modules: tuple[int, str, int] = (-1, "", 0)  # what `_modules` returned
        self.functions: list[_Found] = []
        self.rights: Rights | None = None

    def is_current(self) -> bool:
        """Whether nothing was imported or reloaded since."""
        if self.modules != _modules():
            return False
        return not self.functions or all(found.is_there() for found in self.functions)


class _Found(NamedTuple):
    """A cached function of a module."""

    module: str
    name: str
    function: Any
    code: Any

    def is_there(self) -> bool:
        """Whether it still is what the module has."""
        same = getattr(sys.modules.get(self.module), self.name, None) is self.function
        return same and getattr(self.function.func, "__code__", None) is self.code


def _modules() -> tuple[int, str, int]:
    """Return a value that changes when a module is imported: how many there are, and which one is the last."""
    last = next(reversed(sys.modules))
    return len(sys.modules), last, id(sys.modules.get(last))


def register() -> None:
    """Send rights ahead from now on. May be repeated."""
    if _rights not in FORERUNNERS:
        FORERUNNERS.append(_rights)


def _rights(pool: Any) -> Rights | None:
    """Return the rights to the cached functions in modules of this process, or None if there are none."""
    if pool is None:
        return None
    known: _Known | None = pool.guests.get("module caches")
    if known is None:  # this runs for each task
        known = pool.guests.setdefault("module caches", _Known())
    if not known.is_current():
        with _lock:
            modules = _modules()
            _register_named()
            known.functions = list(_cached_functions())
            known.rights, known.modules = _made(known.functions, pool), modules
    return known.rights


def _register_named() -> None:
    from skyward.joblib_ext import cache_desk, named_memory  # noqa: PLC0415 - slots have no use for it

    named_memory.register(cache_desk.store_of)


def _cached_functions() -> Iterator[_Found]:
    """Look through all modules, which takes some 10 ms; the program's own is sent by value."""
    from joblib.memory import FileSystemStoreBackend, MemorizedFunc  # noqa: PLC0415 - slots have no use for it

    for module, content in list(sys.modules.items()):
        if module == "__main__" or module.partition(".")[0] in sys.stdlib_module_names:
            continue
        for name, value in list(getattr(content, "__dict__", {}).items()):
            if type(value) is MemorizedFunc and type(value.store_backend) is FileSystemStoreBackend:
                yield _Found(module, name, value, getattr(value.func, "__code__", None))


def _made(functions: list[_Found], pool: Any) -> Rights | None:
    from skyward.joblib_ext import cache_desk  # noqa: PLC0415 - slots have no use for it

    stores = {}
    for found in functions:
        function = found.function.func
        if getattr(function, "__module__", "") == found.module:  # and not imported from another one
            stores[found.module, getattr(function, "__qualname__", "")] = cache_desk.store_of(found.function, pool)
    return Rights(pickle.dumps(stores, protocol=5)) if stores else None

"""Estimators with the name of a folder as ``memory=``, such as scikit-learn's ``Pipeline(memory="./cache")``.

scikit-learn makes a `Memory` of that name when it fits; on a node, its folder would be removed with the pool. So nodes
get a `Memory` that refers to the driver's folder instead, and in results it is the name again.
"""

from __future__ import annotations

import copyreg
import functools
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from joblib.memory import FileSystemStoreBackend, Memory

from skyward.core.payload import pickling

__all__ = ["NamedMemory", "register"]

_StoreOf = Callable[[Memory, Any], Any]
"""Returns what a node gets instead of the store of a `Memory`, given that and the pool."""

_KINDS = {
    "sklearn.pipeline": ("Pipeline",),
    "sklearn.cluster": ("AgglomerativeClustering", "FeatureAgglomeration"),
    "imblearn.pipeline": ("Pipeline",),
}


class NamedMemory(Memory):  # type: ignore[misc]
    """A `Memory` in a task, in the place of its folder's name.

    Parameters
    ----------
    name
        The name, as the driver has it.
    store
        The driver's store.
    """

    def __init__(self, name: str, store: Any) -> None:
        super().__init__(None, verbose=0)
        self.original = name  # joblib hashes this instead
        self.location, self.store_backend = store.location, store

    def __repr__(self) -> str:
        return repr(self.original)  # an estimator is printed as it is in the driver

    def __reduce__(self) -> Any:
        return _named, (self.original, self.store_backend)


class _Sent:
    """What is pickled for a name."""

    def __init__(self, name: str, store: Any) -> None:
        self._name, self._store = name, store

    def __reduce__(self) -> Any:
        return _named, (self._name, self._store)


def _named(name: str, store: Any) -> Any:
    """Return what stands for a name here; called by the pickle. In the driver the store is joblib's own."""
    return name if type(store) is FileSystemStoreBackend else NamedMemory(name, store)


# --- in the driver ----------------------------------------------------------------------------------------------------


@functools.lru_cache(32)
def _memory(location: str) -> Memory:
    return Memory(location, verbose=0)


def _reduce(store_of: _StoreOf, estimator: Any, pool: Any) -> Any:
    """What ``__reduce__`` of an estimator would return, with a `Memory` in the place of a folder's name."""
    name = getattr(estimator, "__dict__", {}).get("memory")
    if type(name) is not str or not name:
        return None
    try:
        memory = _memory(os.path.abspath(name))
    except OSError:  # as long as nothing is fitted that is no error
        return None
    reduced = estimator.__reduce_ex__(5)
    if reduced[0] is not copyreg.__newobj__ or not isinstance(reduced[2], dict):  # type: ignore[attr-defined]
        return None
    state = {**reduced[2], "memory": _Sent(name, store_of(memory, pool))}
    return (*reduced[:2], state, *reduced[3:])


def _kinds() -> Iterator[type]:
    for module, names in _KINDS.items():
        for name in names:
            kind = getattr(sys.modules.get(module), name, None)
            if isinstance(kind, type):
                yield kind


def register(store_of: _StoreOf) -> None:
    """Make the pickler send such estimators that way, if their modules have been imported. May be repeated."""
    for kind in _kinds():
        pickling.POOL_REDUCERS.setdefault(kind, partial(_reduce, store_of))

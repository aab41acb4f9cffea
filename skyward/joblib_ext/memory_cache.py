"""`joblib.Memory` in the driver: calls of cached functions are looked up before they are sent, and stored afterwards.

Keys, files and messages are joblib's own: what is stored here is a hit for plain joblib, and vice versa.
Importing this module makes it known to every pool.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from joblib.func_inspect import filter_args, format_signature
from joblib.memory import MemorizedFunc, NotMemorizedResult, extract_first_line

from skyward.core.labels import label
from skyward.core.tasks.jobs import KeptCall
from skyward.core.tasks.kept_calls import KINDS, Kind
from skyward.joblib_ext import joblib_private
from skyward.joblib_ext.computing import Computing

__all__ = ["CachedCall", "OneOfBatch", "cached_call", "is_cached"]

_log = logging.getLogger("skyward.joblib")

# Of a file: device, inode, time of change and size. joblib replaces files and does not write into them.
_Stamp = tuple[int, int, int, int]

_lock = threading.Lock()  # guards what follows
_sources: weakref.WeakKeyDictionary[MemorizedFunc, tuple[Any, _Stamp]] = weakref.WeakKeyDictionary()
_computing: weakref.WeakKeyDictionary[MemorizedFunc, Computing] = weakref.WeakKeyDictionary()


class CachedCall:
    """One call of a function that `joblib.Memory` caches; a `KeptCall`.

    Parameters
    ----------
    memorized
        The function.
    args, kwargs
        Its arguments.
    shelves
        Whether the caller gets a reference to the result, as from ``call_and_shelve``.
    """

    __slots__ = ("_args", "_id", "_inputs", "_kwargs", "_memorized", "_shelves", "_source", "_stamp", "function", "key")

    def __init__(
        self, memorized: MemorizedFunc, args: Sequence[Any], kwargs: Mapping[str, Any], shelves: bool = False
    ) -> None:
        self._memorized = memorized
        self._args, self._kwargs, self._shelves = args, kwargs, shelves
        self._inputs: dict[str, str] = {}
        self._stamp: _Stamp | None = None
        self._source: str = memorized.func_code_info[0]
        self._id = joblib_private.call_id_of(memorized, args, kwargs)
        store = memorized.store_backend
        self.key: Hashable = (type(store), store.location, *self._id, self._source)
        self.function: Callable[..., Any] = _computing_of(memorized)

    def __repr__(self) -> str:
        return f"<CachedCall {'/'.join(self._id)}>"

    def find(self) -> tuple[Any] | None:
        """See `KeptCall.find`; the same steps as in joblib."""
        memorized, store = self._memorized, self._memorized.store_backend
        if joblib_private.verbosity(memorized) >= 20:
            self._announce()
        if not self._is_source_known() or not store.contains_item(self._id):
            return None
        validate = memorized.cache_validation_callback
        if validate is not None and not validate(store.get_metadata(self._id)):
            store.clear_item(self._id)
            return None
        if self._shelves:
            return (joblib_private.shelved(memorized, self._id),)
        try:
            return (joblib_private.load_item(memorized, self._id),)
        except Exception:  # broken, or removed at this moment
            _, signature = format_signature(memorized.func, *self._args, **self._kwargs)
            memorized.warn(f"Exception while loading results for {signature}\n {traceback.format_exc()}")
            return None

    def _announce(self) -> None:
        """Log what joblib logs."""
        logging.basicConfig(level=logging.INFO)
        _, signature = format_signature(self._memorized.func, *self._args, **self._kwargs)
        where = os.path.join(self._memorized.store_backend.location, self._id[0])
        text = f"Querying {label(self._memorized.func)} with signature\n{signature}.\n\n(argument hash {self._id[1]})"
        self._memorized.info(f"{text}\n\nThe store location is {where}.")

    def _is_source_known(self) -> bool:
        """Whether the cache belongs to the function's current source; joblib checks again only if that may differ.

        Another program, or a cell of a notebook, may have cached another function of that name meanwhile.
        """
        memorized = self._memorized
        code = getattr(memorized.func, "__code__", None)
        self._stamp = _stamp(memorized)
        if self._stamp is not None:
            with _lock:
                if _sources.get(memorized) == (code, self._stamp):
                    return True
        known = joblib_private.is_source_known(memorized)
        self._stamp = _stamp(memorized)
        if self._stamp is not None:
            with _lock:
                _sources[memorized] = code, self._stamp
        return known

    def detach(self) -> None:
        """See `KeptCall.detach`."""
        arguments = filter_args(self._memorized.func, self._memorized.ignore, self._args, self._kwargs)
        self._inputs = {name: repr(value) for name, value in arguments.items()}
        self._args, self._kwargs = (), {}

    def keep(self, result: Any, seconds: float) -> Any:
        """See `KeptCall.keep`."""
        try:
            return self._keep(result, seconds)
        except Exception as error:  # such as a warning that is an error here, or a broken store of the user's
            _log.warning("the result of %s is not cached: %r", self._id[0], error, exc_info=error)
            return self._unkept(result)

    def _keep(self, result: Any, seconds: float) -> Any:
        memorized, store = self._memorized, self._memorized.store_backend
        if not self._may_keep():
            return self._unkept(result)
        store.dump_item(self._id, result, verbose=joblib_private.verbosity(memorized))
        if not store.contains_item(self._id):  # the disk is full; joblib has warned
            return self._unkept(result)
        metadata = {"duration": seconds, "input_args": self._inputs, "time": time.time()}
        store.store_metadata(self._id, metadata)
        if self._shelves:
            return joblib_private.shelved(memorized, self._id, metadata)
        if memorized.mmap_mode is not None:  # as later calls get it
            return joblib_private.load_item(memorized, self._id, metadata)
        return result

    def _may_keep(self) -> bool:
        """Whether the cache still belongs to the source that was run; another one may have taken its place."""
        if self._stamp is not None and _stamp(self._memorized) == self._stamp:
            return True
        try:
            text = self._memorized.store_backend.get_cached_func_code([self._memorized.func_id])
        except OSError:  # the cache was cleared; joblib will not use this result, and it does no harm
            return True
        return bool(extract_first_line(text)[0] == self._source)

    def _unkept(self, result: Any) -> Any:
        return NotMemorizedResult(result) if self._shelves else result


def _stamp(memorized: MemorizedFunc) -> _Stamp | None:
    """Return the stamp of the file with the function's source; None if there is none, or the store has no files."""
    try:
        found = os.stat(os.path.join(memorized.store_backend.location, memorized.func_id, "func_code.py"))  # noqa: PTH116 - for each call
    except (OSError, TypeError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _computing_of(memorized: MemorizedFunc) -> Computing:
    """Return what is sent of a cached function: the same object each time, so that it is pickled only once."""
    verbose = joblib_private.verbosity(memorized)
    with _lock:
        known = _computing.get(memorized)
        if known is None or known.function is not memorized.func or known.verbose != verbose:
            known = _computing[memorized] = Computing(memorized.func, verbose)
        return known


class OneOfBatch:
    """A `KeptCall` that is sent as a batch of one, so that its result is a list of one.

    Parameters
    ----------
    kept
        The call itself.
    """

    __slots__ = ("_kept", "function", "key")

    def __init__(self, kept: KeptCall) -> None:
        self._kept = kept
        self.key = kept.key
        self.function = kept.function

    def find(self) -> tuple[Any] | None:
        """See `KeptCall.find`."""
        found = self._kept.find()
        return None if found is None else ([found[0]],)

    def detach(self) -> None:
        """See `KeptCall.detach`."""
        self._kept.detach()

    def keep(self, result: Any, seconds: float) -> Any:
        """See `KeptCall.keep`."""
        return [self._kept.keep(result[0], seconds)]


def is_cached(function: Any) -> bool:
    """Whether a function is a cached one, or the ``call_and_shelve`` of one."""
    if type(function) is types.MethodType:
        shelves = function.__func__ is MemorizedFunc.call_and_shelve
        return shelves and type(function.__self__) is MemorizedFunc
    return type(function) is MemorizedFunc


def cached_call(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> KeptCall:
    """Return a call as one whose result is cached.

    Parameters
    ----------
    function
        One for which `is_cached` is true.
    args, kwargs
        Its arguments.
    """
    if type(function) is types.MethodType:
        return CachedCall(function.__self__, args, kwargs, shelves=True)
    return CachedCall(function, args, kwargs)


if joblib_private.KEEPS:
    KINDS[MemorizedFunc] = KINDS[types.MethodType] = Kind(is_cached, cached_call)

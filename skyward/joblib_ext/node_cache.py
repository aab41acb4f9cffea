"""joblib's caches inside tasks: a store that is the driver's, reached through the node's agent.

What `joblib.Memory` does with a store is a request to the driver: whether there is a result, the result itself, storing
one, clearing. On nodes that see the driver's files, joblib uses the folder itself, and asks only for its turn, since
identical calls are computed one at a time in the whole pool. `cache_desk.py` is the driver's end.

There is one connection for each thread of a slot, by way of `worker/bridge.py`. A request is a tuple of plain values,
and so is its answer; bytes of results follow in pieces.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Client
from typing import Any

from joblib import numpy_pickle
from joblib.logger import format_time
from joblib.memory import FileSystemStoreBackend, MemorizedFunc

from skyward.core.payload import pickling
from skyward.joblib_ext import joblib_private
from skyward.joblib_ext.computing import check_code
from skyward.joblib_ext.fetched_results import fetched
from skyward.joblib_ext.named_memory import NamedMemory

__all__ = ["GRANTED", "HOMES", "PIECE", "DriverStore", "Grant", "SharedStore", "adopt", "arrive", "taking_turns"]

PIECE = 8 << 20
"""Maximum bytes of a result in one message."""

HOMES: dict[str, Callable[[str], Any]] = {}
"""Addresses of this process's own desks -> what returns the store that a token stands for."""

GRANTED: dict[tuple[str, str], Any] = {}
"""Module and name of cached functions that modules of this node have -> the store that they are to use."""

_CallId = tuple[str, str]
_READING = (None, "r", "c")  # modes in which a file is not changed; in the others each task has one of its own


class Grant:
    """The right to use one cached function, or one `Memory`, of the driver's.

    Parameters
    ----------
    address
        Where the driver's desk listens.
    token
        Proves the right.
    shared
        Whether the node sees the driver's files.
    mark
        The `code_mark` of the function.
    """

    __slots__ = ("address", "mark", "shared", "token")

    def __init__(self, address: str, token: str, shared: bool, mark: str) -> None:
        self.address, self.token, self.shared, self.mark = address, token, shared, mark

    def __repr__(self) -> str:
        return f"<Grant of {self.address}>"


class _Link:
    """A connection to a desk."""

    def __init__(self, address: str) -> None:
        self.pid = os.getpid()
        self.connection = Client(address)


class _Links(threading.local):
    """The connections of this thread, by address."""

    def __init__(self) -> None:
        self.links: dict[str, _Link] = {}


_links = _Links()
_current = threading.local()  # `source` of the function that this thread computes
_process = (0, "")  # the id of this process, and how the driver tells it from others


def _me() -> str:
    global _process  # noqa: PLW0603 - a fork of a slot is another process
    if _process[0] != os.getpid():
        _process = os.getpid(), uuid.uuid4().hex
    return _process[1]


class _Unreachable(Exception):
    """The driver does not answer, or refuses."""


def _ask(grant: Grant, what: str, *values: Any, pieces: Sequence[Any] = ()) -> tuple[Any, ...]:
    """Ask the desk.

    Parameters
    ----------
    grant
        The right.
    what, *values
        The request.
    pieces
        Bytes that follow.
    """
    link = _links.links.get(grant.address)
    try:
        if link is None or link.pid != os.getpid():
            link = _links.links[grant.address] = _Link(grant.address)
        link.connection.send((what, grant.token, _me(), *values))
        for piece in pieces:
            link.connection.send(bytes(piece))
        answer: tuple[Any, ...] = link.connection.recv()
    except (OSError, EOFError) as error:
        _links.links.pop(grant.address, None)
        raise _Unreachable(f"the program that opened the pool does not answer ({error!r})") from error
    if answer[0] != "ok":
        raise _Unreachable(str(answer[1]))
    return answer[1:]


def _warn(what: str, problem: _Unreachable) -> None:
    warnings.warn(f"joblib's cache: {what}: {problem}", UserWarning, stacklevel=4)


class _Turns:
    """What both stores have in common: computing identical calls one at a time."""

    grant: Grant
    original: Any
    """The driver's store. joblib hashes it instead of this one: the hash of an object contains its cached methods."""

    @contextlib.contextmanager
    def turn(self, call_id: _CallId, source: str) -> Iterator[bool]:
        """Wait for the turn of a call; yield whether there may be a result by now.

        Parameters
        ----------
        call_id
            The key of the call.
        source
            The source of its function.
        """
        answer = "crossed"
        try:
            (answer,) = _ask(self.grant, "turn", *call_id, source)
        except _Unreachable as problem:
            _warn(f"{call_id[0]} is computed without waiting for others", problem)
        try:
            yield answer == "look"
        finally:
            if answer != "crossed":
                with contextlib.suppress(_Unreachable):  # the desk notices
                    _ask(self.grant, "leave", *call_id, source)

    def look(self, call_id: _CallId) -> None:
        """Request everything that is about to be read of a call."""


def _twin(state: dict[str, Any]) -> Any:
    twin = FileSystemStoreBackend.__new__(FileSystemStoreBackend)
    twin.__dict__.update(state)
    return twin


class SharedStore(_Turns, FileSystemStoreBackend):  # type: ignore[misc]
    """joblib's own store, in the driver's folder.

    Parameters
    ----------
    grant
        The right to ask for turns.
    state
        The attributes of the driver's store, with an absolute location.
    original
        Its attributes as they are there.
    """

    def __init__(self, grant: Grant, state: dict[str, Any], original: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.grant, self.original = grant, _twin(original)

    def __reduce__(self) -> Any:
        return _reduced(self)


class DriverStore(_Turns, FileSystemStoreBackend):  # type: ignore[misc]
    """The driver's store, asked for each step.

    Parameters
    ----------
    grant
        The right to use it.
    state, original
        The attributes of the driver's store.
    """

    def __init__(self, grant: Grant, state: dict[str, Any], original: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.grant, self.original = grant, _twin(original)
        self._here = threading.local()  # what `look` returned, and results that the driver could not store

    def __reduce__(self) -> Any:
        return _reduced(self)

    def _asked(
        self, otherwise: tuple[Any, ...], what: str, *values: Any, pieces: Sequence[Any] = ()
    ) -> tuple[Any, ...]:
        try:
            return _ask(self.grant, what, *values, pieces=pieces)
        except _Unreachable as problem:
            _warn("results are computed here and not cached", problem)
            return otherwise

    def look(self, call_id: _CallId) -> None:
        """See `_Turns.look`: one round trip instead of one for each step."""
        code, found, metadata, item, version = self._asked((None, False, "", None, None), "look", *call_id)
        self._here.seen = call_id, code, found, metadata, item, version

    def _seen(self, call_id: Sequence[str]) -> tuple[Any, ...] | None:
        """What was seen of a call, or, given only a function's name, of its source. It is used once."""
        seen: tuple[Any, ...] | None = getattr(self._here, "seen", None)
        if seen is None or seen[0][: len(call_id)] != tuple(call_id):
            return None
        return seen

    # --- what joblib calls ---

    def get_cached_func_code(self, call_id: Sequence[str]) -> str:
        """Return the source that the cache was made by. Raises OSError if there is none."""
        seen = self._seen(call_id)
        code = seen[1] if seen else self._asked((None,), "code", *call_id)[0]
        if code is None:
            raise FileNotFoundError(f"no source of {call_id[0]} is stored")
        return str(code)

    def store_cached_func_code(self, call_id: Sequence[str], func_code: str | None = None) -> None:
        """Record the source that the cache is made by; a new function needs nothing."""
        if func_code is not None:
            self._here.seen = None
            self._asked((), "set code", *call_id, func_code)

    def contains_item(self, call_id: _CallId) -> bool:
        """Whether there is a result."""
        seen = self._seen(call_id)
        return bool(seen[2] if seen else self._asked((None, False), "look", *call_id)[1])

    def get_metadata(self, call_id: _CallId) -> dict[str, Any]:
        """Return what is known of a result."""
        seen = self._seen(call_id)
        text = seen[3] if seen else self._asked((None, False, ""), "look", *call_id)[2]
        metadata: dict[str, Any] = json.loads(text) if text else {}
        return metadata

    def load_item(self, call_id: _CallId, verbose: int = 1, timestamp: Any = None, metadata: Any = None) -> Any:
        """Return a result.

        Parameters
        ----------
        call_id
            The key of the call.
        verbose, timestamp, metadata
            What joblib prints.

        Raises
        ------
        KeyError
            There is none.
        """
        unkept = self._here.__dict__.pop("unkept", None)
        if unkept is not None and unkept[0] == tuple(call_id):
            return unkept[1]
        if verbose > 1:
            self._announce(call_id, verbose, timestamp, metadata)
        seen = self._seen(call_id)
        self._here.seen = None
        if seen and seen[4] is not None and self.mmap_mode is None:
            return numpy_pickle.load(io.BytesIO(seen[4]))
        if seen and seen[5] is not None and self.mmap_mode in _READING:
            which, (size, version) = (self.grant.address, self.grant.token, *call_id), seen[5]
            with fetched(which, size, partial(self._fetch, call_id), version) as copy:
                if copy is not None:
                    return self._loaded(copy)
        with tempfile.TemporaryFile() if self.mmap_mode is None else tempfile.NamedTemporaryFile() as file:
            if self._fetch(call_id, file) is None:
                raise KeyError(f"there is no result of {'/'.join(call_id)}; it may have been cleared")
            return self._loaded(file)

    def _loaded(self, file: Any) -> Any:
        """Load a result; a map outlives the name of its file."""
        if self.mmap_mode is not None:
            return numpy_pickle.load(str(file.name), mmap_mode=self.mmap_mode)
        file.seek(0)
        return numpy_pickle.load(file)

    def _announce(self, call_id: _CallId, verbose: int, timestamp: Any, metadata: Any) -> None:
        """Print what joblib prints."""
        since = "" if timestamp is None else f"{format_time(time.time() - timestamp): <16}"
        name = os.path.basename(call_id[0])
        if metadata and "input_args" in metadata:
            name += "({})".format(", ".join(f"{key}={value}" for key, value in metadata["input_args"].items()))
        where = "..." if verbose < 10 else f" from {'/'.join((self.location, *call_id))}"
        sys.stdout.write(f"[Memory]{since}: Loading {name}{where}\n")

    def _fetch(self, call_id: _CallId, file: Any) -> str | None:
        """Write a result into a file; return its version, or None if there is none."""
        size, version = self._asked((-1, None), "load", *call_id)
        connection = _links.links[self.grant.address].connection if size > 0 else None
        try:
            while connection is not None and file.tell() < size:
                file.write(connection.recv_bytes())
            file.flush()
        except BaseException:  # the disk is full, say; the rest of the result is still on its way
            _links.links.pop(self.grant.address, None)
            raise
        return version if size >= 0 else None

    def dump_item(self, call_id: _CallId, item: Any, verbose: int = 1) -> None:
        """Have a result stored. If that fails there is a warning, as with joblib.

        Parameters
        ----------
        call_id, item
            The key of the call, and its result.
        verbose
            Not used: messages about files are printed in the driver.
        """
        self._here.seen = None
        try:
            head, buffers = pickling.dumps(item, "the result", large=None, named="data")
        except Exception as error:  # a user's __reduce__ may raise anything
            warnings.warn(f"the result of {call_id[0]} is not cached: {error}", UserWarning, stacklevel=3)
            self._here.unkept = tuple(call_id), item
            return
        sizes = tuple(len(part) for part in (head, *buffers))
        views = [memoryview(head), *buffers]
        pieces = [view[at : at + PIECE] for view in views for at in range(0, len(view), PIECE)]
        source = getattr(_current, "source", "")
        (kept,) = self._asked((False,), "keep", *call_id, source, sizes, pieces=pieces)
        if not kept:
            self._here.unkept = tuple(call_id), item

    def store_metadata(self, call_id: _CallId, metadata: dict[str, Any]) -> None:
        """Store what is known of a result."""
        self._asked((), "note", *call_id, json.dumps(metadata))

    def clear_item(self, call_id: _CallId) -> None:
        """Remove a result."""
        self._here.seen = None
        self._asked((), "clear", *call_id)

    def clear_path(self, call_id: Sequence[str]) -> None:
        """Remove all results of a function."""
        self._here.seen = None
        self._asked((), "clear", *call_id)

    def clear(self) -> None:
        """Remove everything."""
        self._here.seen = None
        self._asked((), "clear")

    def enforce_store_limits(self, bytes_limit: Any, items_limit: Any = None, age_limit: Any = None) -> None:
        """Remove the least recently used results.

        Parameters
        ----------
        bytes_limit, items_limit, age_limit
            As for `joblib.Memory.reduce_size`.
        """
        age = None if age_limit is None else age_limit.total_seconds()
        self._asked((), "limit", bytes_limit, items_limit, age)


def _reduced(store: Any) -> Any:
    """What ``__reduce__`` returns for a store."""
    grant = store.grant
    state = {name: value for name, value in vars(store).items() if name not in ("grant", "original", "_here")}
    return arrive, (grant.address, grant.token, grant.shared, grant.mark, state, vars(store.original))


def arrive(address: str, token: str, shared: bool, mark: str, state: dict[str, Any], original: dict[str, Any]) -> Any:
    """Return the store that stands for the driver's here; in the driver itself, that one. Called by the pickle.

    Parameters
    ----------
    address, token, shared, mark
        See `Grant`.
    state, original
        See `SharedStore`.
    """
    home = HOMES.get(address)
    if home is not None:
        return home(token)
    joblib_private.take_turns(taking_turns, (_Turns, NamedMemory), adopt)
    return (SharedStore if shared else DriverStore)(Grant(address, token, shared, mark), state, original)


@contextlib.contextmanager
def taking_turns(memorized: MemorizedFunc, call_id: _CallId) -> Iterator[bool]:
    """Wait for the turn of a call that is about to be computed; yield whether to look for its result once more.

    Parameters
    ----------
    memorized, call_id
        The function, and the key of its call.

    Raises
    ------
    PayloadError
        The function here is another one than in the driver.
    """
    store = memorized.store_backend
    if not isinstance(store, _Turns):
        yield False
        return
    check_code(memorized.func, store.grant.mark)
    source = memorized.func_code_info[0]
    before, _current.source = getattr(_current, "source", ""), source
    try:
        with store.turn(call_id, source) as waited:
            yield waited
    finally:
        _current.source = before


def adopt(memorized: MemorizedFunc) -> None:
    """Give a cached function that was made here, by a module, the driver's store."""
    if type(memorized.store_backend) is FileSystemStoreBackend:
        place = getattr(memorized.func, "__module__", ""), getattr(memorized.func, "__qualname__", "")
        memorized.store_backend = GRANTED.get(place, memorized.store_backend)

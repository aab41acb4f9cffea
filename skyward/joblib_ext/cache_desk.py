"""The driver's end of caches that tasks use: who may use which, and whose turn it is.

A cached function, a `Memory` or a reference to a result carries a token when it is sent with a task. The token allows
the use of that function's cache, or of all of that `Memory`, and of nothing else. `node_cache.py` is the other end.
"""

from __future__ import annotations

import contextlib
import copyreg
import datetime
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from multiprocessing import util
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from joblib import memory as joblib_memory
from joblib.memory import FileSystemStoreBackend, MemorizedFunc, MemorizedResult, Memory, extract_first_line

from skyward.core.payload import pickling
from skyward.core.protocol import wire
from skyward.core.results.rules import RefusedPickle, Rule
from skyward.core.results.unpickler import loads
from skyward.core.tasks.pool_context import PoolContext
from skyward.joblib_ext.computing import code_mark
from skyward.joblib_ext.joblib_private import KEEPS
from skyward.joblib_ext.node_cache import HOMES, PIECE, DriverStore, Grant, SharedStore

__all__ = ["CacheDesk", "desk_of", "register", "store_of"]

_MAX_MESSAGE = 64 << 20  # bytes
_MAX_RESULT = wire.SizeLimits().message
_SMALL = 64 << 10  # bytes of a result that is sent along with the answer to a lookup
_ARGUMENTS = re.compile(r"[0-9a-f]{32,64}")
_LOOK_AGAIN = 0.25  # seconds
_PATIENCE = 1.0  # seconds for which an identical call may be queued before this one is computed as well

_log = logging.getLogger("skyward.joblib")
_lock = threading.Lock()  # guards PoolContext.guests


class _Refused(Exception):
    """A request that its token does not cover."""


@dataclass(frozen=True)
class _Right:
    store: Any
    function: str | None  # None: every function of that `Memory`


@dataclass(eq=False)
class _Client:
    """A thread of a slot."""

    sock: socket.socket
    connection: Connection
    held: list[Hashable] = field(default_factory=list)  # keys of calls that it computes


class CacheDesk:
    """Answers the tasks of one pool. Each connection has a thread.

    Parameters
    ----------
    context
        The pool.
    """

    def __init__(self, context: PoolContext) -> None:
        self._context = context
        self._lock = threading.Lock()  # guards what follows
        self._rights: dict[str, _Right] = {}
        self._tokens: dict[tuple[int, str | None], str] = {}  # by the store's id, which its right keeps alive
        self._clients: set[_Client] = set()
        self._holders: dict[Hashable, str] = {}  # key of a call -> the process that computes it
        self._waiters: dict[str, list[Hashable]] = {}  # process -> the calls that its threads wait for
        self._closed = False
        self.sent = 0
        """How many results were sent by themselves, being too large to be sent along with the answer to a lookup."""
        self.address = f"{util.get_temp_dir()}/skyward-{uuid.uuid4().hex[:12]}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen(128)
        HOMES[self.address] = self._home
        threading.Thread(target=self._accept, name="skyward-cache", daemon=True).start()

    def __repr__(self) -> str:
        return f"<CacheDesk at {self.address}: {len(self._rights)} rights, {len(self._clients)} connections>"

    def grant(self, store: Any, function: str | None, mark: str = "") -> Any:
        """Return the store that is sent instead of one of this process.

        Parameters
        ----------
        store
            A store of joblib's.
        function
            Name of the cached function in it; None for all of a `Memory`.
        mark
            The `code_mark` of the function.
        """
        with self._lock:
            token = self._tokens.get((id(store), function))
            if token is None:
                token = self._tokens[id(store), function] = secrets.token_hex(16)
                self._rights[token] = _Right(store, function)
        original = dict(vars(store))
        state = {**original, "location": os.path.abspath(original["location"])}
        kind = SharedStore if self._context.shared else DriverStore
        return kind(Grant(self.address, token, self._context.shared, mark), state, original)

    def _home(self, token: str) -> Any:
        """Return the store of a token that has come back."""
        return self._rights[token].store

    def close(self) -> None:
        """End all connections, once no task needs them any more."""
        HOMES.pop(self.address, None)
        with self._lock:
            self._closed = True
            sockets = [self._listener, *(client.sock for client in self._clients)]
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
        with contextlib.suppress(OSError):
            Path(self.address).unlink()

    # --- threads ---

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                break
            client = _Client(sock, Connection(os.dup(sock.fileno())))
            with self._lock:
                if self._closed:
                    sock.close()
                    break
                self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), name="skyward-cache", daemon=True).start()
        self._listener.close()

    def _serve(self, client: _Client) -> None:
        try:
            while not self._closed:
                what, token, process, *values = _received(client.connection)
                self._answer(client, what, token, process, values)
        except (EOFError, OSError):
            pass  # it has ended
        except Exception as error:  # anything may be raised by reading what is not a request
            _log.warning("the connection of a task to its caches is closed: %r", error)
        finally:
            with self._lock:
                self._clients.discard(client)
            for key in list(client.held):
                self._leave(client, key)
            client.connection.close()
            client.sock.close()

    def _answer(self, client: _Client, what: str, token: str, process: str, values: list[Any]) -> None:
        parts = _parts(client.connection, values.pop()) if what == "keep" else []
        right = self._rights.get(token)
        try:
            if right is None or what not in self._REQUESTS:
                raise _Refused("the token or the request is unknown")
            answer = self._REQUESTS[what](self, client, process, right, parts, *_checked(right, what, values))
        except Exception as error:
            answer = ("no", f"{error}" if isinstance(error, _Refused) else f"{type(error).__name__}: {error}")
        client.connection.send(answer)
        if what == "load" and answer[0] == "ok" and answer[1] > 0:
            _send_file(client.connection, answer[1], right, values)

    # --- requests ---

    def _look(self, _: _Client, __: str, right: _Right, ___: Any, *call_id: str) -> tuple[Any, ...]:
        store, item = right.store, None
        found = store.contains_item(call_id)
        version = None
        with contextlib.suppress(OSError):
            path = _path(store, call_id)
            status = path.stat()
            if status.st_size <= _SMALL:
                item = path.read_bytes()
            else:
                version = status.st_size, _version(status)
        metadata = json.dumps(store.get_metadata(call_id)) if found else ""
        return "ok", _source(store, call_id[0]), found, metadata, item if found else None, version if found else None

    def _code(self, _: _Client, __: str, right: _Right, ___: Any, function: str) -> tuple[Any, ...]:
        return "ok", _source(right.store, function)

    def _set_code(self, _: _Client, __: str, right: _Right, ___: Any, function: str, code: str) -> tuple[Any, ...]:
        right.store.store_cached_func_code([function], code)
        return ("ok",)

    def _load(self, _: _Client, __: str, right: _Right, ___: Any, *call_id: str) -> tuple[Any, ...]:
        try:
            status = _path(right.store, call_id).stat()
        except OSError:
            return "ok", -1, None
        self.sent += 1
        return "ok", status.st_size, _version(status)

    def _keep(self, _: _Client, __: str, right: _Right, parts: Any, *values: str) -> tuple[Any, ...]:
        *call_id, source = values
        value, error = self._context.answers.result(f"the cached {call_id[0]}", parts)
        if error is not None:
            warnings.warn(f"{error}; it is not cached", UserWarning, stacklevel=2)
            return "ok", False
        text = _source(right.store, call_id[0])
        if text is not None and extract_first_line(text)[0] != source:  # the cache is another function's by now
            return "ok", False
        right.store.dump_item(call_id, value, verbose=0)
        return "ok", right.store.contains_item(call_id)

    def _note(self, _: _Client, __: str, right: _Right, ___: Any, *values: str) -> tuple[Any, ...]:
        *call_id, text = values
        metadata = json.loads(text)
        if isinstance(metadata, dict) and right.store.contains_item(call_id):
            right.store.store_metadata(call_id, metadata)
        return ("ok",)

    def _clear(self, _: _Client, __: str, right: _Right, ___: Any, *ids: str) -> tuple[Any, ...]:
        if len(ids) == 2:
            right.store.clear_item(ids)
        elif ids:
            right.store.clear_path(list(ids))
        else:
            right.store.clear()
        return ("ok",)

    def _limit(self, _: _Client, __: str, right: _Right, ___: Any, *limits: Any) -> tuple[Any, ...]:
        size, items, age = limits
        right.store.enforce_store_limits(size, items, None if age is None else datetime.timedelta(seconds=age))
        return ("ok",)

    # --- turns ---

    def _turn(self, client: _Client, process: str, right: _Right, _: Any, *values: str) -> tuple[Any, ...]:
        key = _key(right, values)
        kept = self._context.kept
        turn = kept.begin(key)
        if turn is not None:
            since = time.monotonic()
            self._note_wait(process, key, waits=True)
            try:
                while not turn.wait(0 if self._closed else _LOOK_AGAIN):
                    late = time.monotonic() - since > _PATIENCE and kept.is_queued(key)
                    if (late or self._closed or self._would_deadlock(process, key)) and kept.give_up(key, turn):
                        return "ok", "crossed"
            finally:
                self._note_wait(process, key, waits=False)
        client.held.append(key)
        with self._lock:
            self._holders[key] = process
        # It may also have been stored between the lookup and now.
        return "ok", "look" if right.store.contains_item(values[:2]) else "compute"

    def _left(self, client: _Client, _: str, right: _Right, __: Any, *values: str) -> tuple[Any, ...]:
        key = _key(right, values)
        if key in client.held:
            self._leave(client, key)
        return ("ok",)

    def _leave(self, client: _Client, key: Hashable) -> None:
        client.held.remove(key)
        with self._lock:
            self._holders.pop(key, None)
        self._context.kept.leave(key)

    def _note_wait(self, process: str, key: Hashable, *, waits: bool) -> None:
        with self._lock:
            keys = self._waiters.setdefault(process, [])
            if waits:
                keys.append(key)
            else:
                keys.remove(key)
            if not keys:
                del self._waiters[process]

    def _would_deadlock(self, process: str, key: Hashable) -> bool:
        """Whether whoever computes that call waits, directly or through others, for this process."""
        with self._lock:
            seen: set[str] = set()
            todo = [holder for holder in [self._holders.get(key)] if holder is not None and holder != process]
            while todo:
                holder = todo.pop()
                if holder == process:
                    return True
                if holder not in seen:
                    seen.add(holder)
                    keys = self._waiters.get(holder, [])
                    todo += [self._holders[each] for each in keys if each in self._holders]
            return False

    _REQUESTS: ClassVar[dict[str, Callable[..., tuple[Any, ...]]]] = {
        "look": _look,
        "code": _code,
        "set code": _set_code,
        "load": _load,
        "keep": _keep,
        "note": _note,
        "clear": _clear,
        "limit": _limit,
        "turn": _turn,
        "leave": _left,
    }


def _key(right: _Right, values: Sequence[str]) -> Hashable:
    """The key of a call, which is that of `CachedCall.key`."""
    return (type(right.store), right.store.location, *values)


_WHOLE = {"limit": 3, "clear": 0}  # requests about all of a `Memory`, and how many values they have
_COUNTS = {"look": 2, "code": 1, "set code": 2, "load": 2, "keep": 3, "note": 3, "turn": 3, "leave": 3}  # of the others


def _checked(right: _Right, what: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return the values of a request, which begin with function and arguments; raise _Refused if not allowed.

    Parameters
    ----------
    right
        What the sender may do.
    what, values
        The request.
    """
    if _WHOLE.get(what) == len(values):
        if right.function is not None:
            raise _Refused("that needs access to the whole cache, but only one function of it was sent")
        return values
    if not all(type(value) is str for value in values) or len(values) != _COUNTS.get(what, min(len(values), 2)):
        raise _Refused("that is not a request")
    path = PurePosixPath(values[0])
    inside = not path.is_absolute() and ".." not in path.parts and bool(path.parts)
    if not inside or right.function not in (None, values[0]):
        raise _Refused(f"that is not the cache of {values[0]}")
    if what not in ("code", "set code") and len(values) > 1 and not _ARGUMENTS.fullmatch(values[1]):
        raise _Refused("that is not a hash of arguments")
    return values


def _path(store: Any, call_id: Sequence[str]) -> Path:
    return Path(store.location, *call_id, "output.pkl")


def _version(status: os.stat_result) -> str:
    """Identify a file among those that had or will have its name; joblib replaces files and never modifies them."""
    return f"{status.st_dev:x}.{status.st_ino:x}.{status.st_mtime_ns:x}.{status.st_size:x}"


def _source(store: Any, function: str) -> str | None:
    try:
        return str(store.get_cached_func_code([function]))
    except OSError:
        return None


def _no_names(module: str, name: str) -> Rule:
    raise RefusedPickle(f"refers to {module}.{name}")


def _received(connection: Connection) -> Any:
    return loads(connection.recv_bytes(_MAX_MESSAGE), (), _no_names)


def _parts(connection: Connection, sizes: Any) -> list[bytearray]:
    """Receive a pickle and its buffers. Raises ValueError if something else arrives."""
    if sum(sizes) > _MAX_RESULT:
        raise ValueError("too large")
    parts = []
    for size in sizes:
        part = bytearray()
        while len(part) < size:
            piece = _received(connection)
            if type(piece) is not bytes or not piece:
                raise ValueError("no piece of a result")
            part += piece
        parts.append(part)
    return parts


def _send_file(connection: Connection, size: int, right: _Right | None, call_id: Sequence[str]) -> None:
    """Send the bytes of a result; if it has been replaced by a shorter one, that ends the connection."""
    assert right is not None
    with _path(right.store, call_id).open("rb") as file:
        left = size
        while left:
            data = file.read(min(left, PIECE))
            if not data:
                raise EOFError
            connection.send_bytes(data)
            left -= len(data)


# --- what is sent -----------------------------------------------------------------------------------------------------


def desk_of(context: PoolContext) -> CacheDesk:
    """Return the desk of a pool; opens it if necessary."""
    with _lock:
        desk: CacheDesk | None = context.guests.get("cache")
        if desk is None:
            desk = context.guests["cache"] = CacheDesk(context)
            context.at_end.callback(desk.close)
        return desk


def store_of(sent: Any, context: PoolContext) -> Any:
    """Return the store that a node gets for a cached function or the like, instead of its own.

    Parameters
    ----------
    sent
        A cached function, a `Memory`, or a reference to a result.
    context
        The pool.
    """
    function = None if isinstance(sent, Memory) else sent.func_id
    return desk_of(context).grant(sent.store_backend, function, code_mark(getattr(sent, "func", None)))


def _reduce(sent: Any, context: PoolContext) -> Any:
    """What ``__reduce__`` of something with a store would return, with the store that its node gets instead."""
    if type(sent.store_backend) is not FileSystemStoreBackend:
        return None
    state = {**sent.__getstate__(), "store_backend": store_of(sent, context)}
    return copyreg.__newobj__, (type(sent),), state  # type: ignore[attr-defined]


def register() -> None:
    """Make the pickler send caches that way. May be repeated."""
    if KEEPS:
        for kind in (joblib_memory.AsyncMemorizedFunc, MemorizedFunc, MemorizedResult, Memory):
            pickling.POOL_REDUCERS[kind] = _reduce

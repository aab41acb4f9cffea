"""Carries changes of the driver's surroundings to tasks on the same machine: sys.path, os.environ, folder and argv.

A notebook opens its pool in one cell and extends ``sys.path`` or ``os.environ`` in a later one. joblib's own workers
see that, as they are started for the next call; ours live as long as the pool. So in the driver, `Surroundings` checks
whether anything has changed since the pool was opened. If so, each call carries a `Change` in front of its own pickle,
and loading that updates the slot's process before anything of the call is loaded: it can't come too late, whichever
slot runs the call and whenever that slot was started. A slot that already has the change skips it.

Nodes on other machines have folders and variables of their own; `Surroundings.explain` says why something is missing.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from skyward.core.payload import exceptions, pickling
from skyward.core.payload.forerunners import SLOTS_ONLY
from skyward.core.whoami import DEPTH, NODE, SLOT

__all__ = ["FOLLOWERS", "Change", "Surroundings", "Within"]

FOLLOWERS: list[Callable[[Mapping[str, str | None]], object]] = []
"""In a slot: called with the variables that have changed (None: deleted), after they have."""

_TEMPORARY = {"TMPDIR", "TEMP", "TMP"}

_Call: TypeAlias = tuple[Any, Any, Any]


class _State(NamedTuple):
    """The surroundings at one time."""

    variables: Any  # a copy of the interpreter's own mapping, which compares fast
    path: list[Any]
    argv: list[Any]
    folder: str


class _Details(NamedTuple):
    """What a slot needs to know."""

    variables: dict[str, str | None]  # the current values of all that have ever changed
    began: list[str]  # sys.path, when the pool was opened and now
    path: list[str]
    argv: list[str]
    folder: str  # empty: the slot's own


class Change:
    """The current surroundings. Loading its pickle updates the process that loads it.

    Parameters
    ----------
    number
        Counts the changes of a pool; 0 means none so far.
    details
        A pickle of what a slot needs to know.
    """

    __slots__ = ("details", "number")

    def __init__(self, number: int, details: bytes) -> None:
        self.number = number
        self.details = details

    def __repr__(self) -> str:
        return f"<Change {self.number} of the surroundings>"

    def __reduce__(self) -> Any:
        return _apply, (self.number, self.details)


class Within(tuple[Any, ...]):  # noqa: SLOT001 - a tuple can only have empty slots
    """A call with the surroundings in which to load and run it; its pickle loads as the plain call."""

    change: Change

    @classmethod
    def of(cls, call: _Call, change: Change) -> _Call:
        """Add the change to the call, if there is any."""
        if not change.number:
            return call
        within = cls(call)
        within.change = change
        return within

    def __reduce__(self) -> Any:
        return _second, (self.change, tuple(self))


pickling.PLAIN[Within] = tuple
pickling.PLAIN[Change] = lambda change: (change.number, change.details)


def _second(_: None, call: _Call) -> _Call:
    """Return the call; called by the pickle, which loads the first part before the second."""
    return call


# --- in the driver --------------------------------------------------------------------------------------------------


class Surroundings:
    """Tracks changes in the driver from when the pool is opened.

    Parameters
    ----------
    shared
        Whether all nodes are on this machine.
    kept
        Variables that were set explicitly for the nodes, and are not changed.
    moves
        Whether tasks follow into the driver's working directory; otherwise they have their own.
    """

    def __init__(self, *, shared: bool, kept: Collection[str] = (), moves: bool = True) -> None:
        self.shared = shared
        self._moves = moves
        self._kept = {NODE, SLOT, DEPTH, *kept}
        self._lock = threading.Lock()  # guards what follows
        self._seen = self._began = _current("/")
        self._variables = dict(os.environ)
        self._touched: set[str] = set()
        self._change = Change(0, b"")

    def __repr__(self) -> str:
        return f"<Surroundings, changed {self._change.number} times>"

    def now(self) -> Change:
        """Return the change up to now. From any thread; takes 3 µs if there is nothing new."""
        if self.shared and not _is_current(self._seen):
            with self._lock:
                self._update()
        return self._change

    def _update(self) -> None:
        """Record a new change."""
        self._seen = _current(self._seen.folder)
        variables = dict(os.environ)
        both = variables.keys() | self._variables.keys()
        changed = {name for name in both if variables.get(name) != self._variables.get(name)}
        self._touched |= changed - self._kept
        details = _Details(
            {name: variables.get(name) for name in sorted(self._touched)},
            _absolute(self._began),
            _absolute(self._seen),
            [str(argument) for argument in self._seen.argv],
            self._seen.folder if self._moves else "",
        )
        self._change = Change(self._change.number + 1, pickle.dumps(details))

    def explain(self, error: BaseException) -> None:
        """Add a note to an error from another machine if the task looked for something that only exists here."""
        if self.shared:
            return
        traceback = _remote_traceback(error)
        name = error.args[0] if isinstance(error, KeyError) and error.args else None
        file = error.filename if isinstance(error, FileNotFoundError) else None
        if isinstance(name, str) and name in os.environ and ("<frozen os>" in traceback or "os.py" in traceback):
            error.add_note(
                f"(os.environ[{name!r}] is set in your program, but nodes on other machines have their own variables: "
                f"name it in Image(env_from=[{name!r}]) when you open the pool)"
            )
        elif isinstance(file, str) and not Path(file).is_absolute() and Path(file).exists():
            error.add_note(
                f"({file!r} is in your program's folder, {Path.cwd()}, which nodes on other machines can't access: "
                "bring a folder there with volume=[sky.LocalVolume(...)] when you open the pool)"
            )


def _current(folder: str) -> _State:
    """The current surroundings, with `folder` if the working folder was removed."""
    return _State(dict(_environ()), list(sys.path), list(sys.argv), _folder() or folder)


def _is_current(state: _State) -> bool:
    return bool(
        _environ() == state.variables
        and sys.path == state.path
        and sys.argv == state.argv
        and _folder() in (state.folder, None)
    )


def _environ() -> Any:
    """The variables as bytes, since comparing them as text takes fifteen times as long."""
    return getattr(os.environ, "_data", os.environ)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _absolute(state: _State) -> list[str]:
    """sys.path with absolute entries; the interpreter ignores entries that are not text."""
    return [os.path.normpath(os.path.join(state.folder, entry)) for entry in state.path if isinstance(entry, str)]


def _remote_traceback(error: BaseException) -> str:
    """The text of the traceback on the node."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, exceptions.RemoteTraceback):
        cause = cause.__cause__
    return "" if cause is None else cause.text


# --- in a slot ------------------------------------------------------------------------------------------------------


class _Applied:
    """The changes that this process has applied."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # guards the rest
        self.number = 0
        self.path: list[str] = []
        self.folder: str | None = None


_applied = _Applied()


def _apply(number: int, details: bytes) -> None:
    """Update this process unless it is up to date; called by the pickle."""
    if number == _applied.number:
        return
    with _applied.lock:
        if number == _applied.number:
            return
        wanted: _Details = pickle.loads(details)
        _set_variables(wanted.variables)
        sys.argv = wanted.argv
        theirs = {*wanted.began, *_applied.path}
        ours = [entry for entry in sys.path if entry not in theirs and entry not in wanted.path]
        sys.path[:] = [*wanted.path, *ours]
        _applied.path = wanted.path
        importlib.invalidate_caches()
        if wanted.folder and wanted.folder != _applied.folder:
            os.chdir(wanted.folder)
            _applied.folder = wanted.folder
        _applied.number = number


SLOTS_ONLY.add(_apply)


def _set_variables(variables: Mapping[str, str | None]) -> None:
    changed = {name: value for name, value in variables.items() if os.environ.get(name) != value}
    for name, value in changed.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "TZ" in changed:
        time.tzset()
    if _TEMPORARY & changed.keys() and (tempfile := sys.modules.get("tempfile")) is not None:
        vars(tempfile)["tempdir"] = None  # it caches the folder
    for follow in FOLLOWERS:
        follow(changed)

"""What the driver's process has set since its pool began, for tasks on the same machine: path, variables, folder, argv.

A notebook opens its pool in one cell and extends ``sys.path`` or ``os.environ`` in a later one. Workers of joblib's own
find that, as they are started for the next call; ours live as long as the pool. So `Surroundings` looks, in the driver,
whether anything differs from the pool's beginning. If so, each call carries a `Change` in front of its own pickle, and
loading that is what puts the slot's process right, before anything of the call is loaded: it can't come too late,
whichever slot the call goes to and whenever that was made. A slot that has the change already passes over it.

Nodes elsewhere have folders and variables of their own; there, `Surroundings.explain` says why something is missing.
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
from skyward.core.whoami import DEPTH, NODE, SLOT

__all__ = ["FOLLOWERS", "Change", "Surroundings", "Within"]

FOLLOWERS: list[Callable[[Mapping[str, str | None]], object]] = []
"""In a slot: told of variables that have changed (None: they are gone), after they have."""

_TEMPORARY = {"TMPDIR", "TEMP", "TMP"}

_Call: TypeAlias = tuple[Any, Any, Any]


class _State(NamedTuple):
    """The surroundings at one time."""

    variables: Any  # as the interpreter keeps them: a copy that compares fast
    path: list[Any]
    argv: list[Any]
    folder: str


class _Details(NamedTuple):
    """What a slot needs to know."""

    variables: dict[str, str | None]  # all that have ever changed, as they are now
    began: list[str]  # the path, at the beginning and now
    path: list[str]
    argv: list[str]
    folder: str


class Change:
    """The surroundings as they are now. Loading its pickle puts the process right that loads it.

    Parameters
    ----------
    number
        Counts the changes of a pool; 0 means that there was none.
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
        return _take_over, (self.number, self.details)


class Within(tuple[Any, ...]):  # noqa: SLOT001 - a tuple can't have other slots than none
    """A call, and the surroundings in which it is to be loaded and run; its pickle loads as the plain call."""

    change: Change

    @classmethod
    def of(cls, call: _Call, change: Change) -> _Call:
        """The call as it is while nothing has changed."""
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
    """Called by the pickle, which has loaded the first part before the second."""
    return call


# --- in the driver --------------------------------------------------------------------------------------------------


class Surroundings:
    """Watches what the driver sets. Made when the pool begins.

    Parameters
    ----------
    shared
        All nodes are on this machine.
    kept
        Variables that were given to the nodes expressly, and stay.
    """

    def __init__(self, *, shared: bool, kept: Collection[str] = ()) -> None:
        self.shared = shared
        self._kept = {NODE, SLOT, DEPTH, *kept}
        self._lock = threading.Lock()  # guards what follows
        self._seen = self._began = _look("/")
        self._variables = dict(os.environ)
        self._touched: set[str] = set()
        self._change = Change(0, b"")

    def __repr__(self) -> str:
        return f"<Surroundings, changed {self._change.number} times>"

    def now(self) -> Change:
        """The change until now. From any thread; where nothing is new it takes 3 µs."""
        if self.shared and not _is_as(self._seen):
            with self._lock:
                self._note()
        return self._change

    def _note(self) -> None:
        """Something is new."""
        self._seen = _look(self._seen.folder)
        variables = dict(os.environ)
        both = variables.keys() | self._variables.keys()
        changed = {name for name in both if variables.get(name) != self._variables.get(name)}
        self._touched |= changed - self._kept
        details = _Details(
            {name: variables.get(name) for name in sorted(self._touched)},
            _absolute(self._began),
            _absolute(self._seen),
            [str(argument) for argument in self._seen.argv],
            self._seen.folder,
        )
        self._change = Change(self._change.number + 1, pickle.dumps(details))

    def explain(self, error: BaseException) -> None:
        """Say with a task's error from elsewhere if it looked for what is only here."""
        if self.shared:
            return
        traceback = _remote_traceback(error)
        name = error.args[0] if isinstance(error, KeyError) and error.args else None
        file = error.filename if isinstance(error, FileNotFoundError) else None
        if isinstance(name, str) and name in os.environ and ("<frozen os>" in traceback or "os.py" in traceback):
            error.add_note(
                f"(os.environ[{name!r}] is set in your program. A node on another machine has variables of its own: "
                f"give it this one with Image(env={{{name!r}: ...}}) when the pool is opened)"
            )
        elif isinstance(file, str) and not Path(file).is_absolute() and Path(file).exists():
            error.add_note(
                f"({file!r} is in your program's folder, {Path.cwd()}, which a node on another machine does not see)"
            )


def _look(folder: str) -> _State:
    """How things are; `folder` where the present one can't be told, since it was removed."""
    return _State(dict(_environ()), list(sys.path), list(sys.argv), _folder() or folder)


def _is_as(state: _State) -> bool:
    return bool(
        _environ() == state.variables
        and sys.path == state.path
        and sys.argv == state.argv
        and _folder() in (state.folder, None)
    )


def _environ() -> Any:
    """The variables; not as text, which it takes fifteen times as long to compare."""
    return getattr(os.environ, "_data", os.environ)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _absolute(state: _State) -> list[str]:
    """The path, as it is meant wherever one is; the interpreter minds nothing else in it than text."""
    return [os.path.normpath(os.path.join(state.folder, entry)) for entry in state.path if isinstance(entry, str)]


def _remote_traceback(error: BaseException) -> str:
    """Where the error arose, as its node has said."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, exceptions.RemoteTraceback):
        cause = cause.__cause__
    return "" if cause is None else cause.text


# --- in a slot ------------------------------------------------------------------------------------------------------


class _Here:
    """What this process has taken over."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # guards the rest
        self.number = 0
        self.path: list[str] = []
        self.folder: str | None = None
        self.given: dict[str, str | None] = {}  # variables that were changed, as they were before


_here = _Here()


def _take_over(number: int, details: bytes) -> None:
    """Put this process right, unless it is; called by the pickle."""
    if number == _here.number:
        return
    with _here.lock:
        if number == _here.number:
            return
        wanted: _Details = pickle.loads(details)
        _set_variables(wanted.variables)
        sys.argv = wanted.argv
        theirs = {*wanted.began, *_here.path}
        ours = [entry for entry in sys.path if entry not in theirs and entry not in wanted.path]
        sys.path[:] = _here.path = [*wanted.path, *ours]
        _here.path = wanted.path
        importlib.invalidate_caches()
        if wanted.folder != _here.folder:
            os.chdir(wanted.folder)
            _here.folder = wanted.folder
        _here.number = number


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
        vars(tempfile)["tempdir"] = None  # it looks once
    for follow in FOLLOWERS:
        follow(changed)

"""What a task gets that asks for input: an immediate error that says what to do instead.

A slot has no terminal. Standard input is empty there, so that `input` would raise a bare `EOFError`, and `pdb` would
print its prompt and end the task with `BdbQuit`.
"""

from __future__ import annotations

import builtins
import inspect
import os
import sys
from typing import Any

from skyward.core.errors import NoInput, NoTerminal
from skyward.core.whoami import NODE

__all__ = ["install"]

_INSTEAD = (
    "run it here: sky.last_failure.debug(), once you have this error, calls it with its arguments in your program; so "
    "do Parallel(n_jobs=1) and f.local(...)"
)
_input = builtins.input
_empty: list[Any] = []  # the standard input of slots


def install() -> None:
    """Replace `input` and what `breakpoint` calls, in a process whose tasks have no terminal."""
    _empty[:] = [sys.stdin, sys.__stdin__]
    builtins.input = input_in_task
    sys.breakpointhook = breakpoint_in_task


def breakpoint_in_task(*args: Any, **kwargs: Any) -> Any:
    """Raise `NoTerminal`; call what ``PYTHONBREAKPOINT`` names, if it does, such as a debugger that listens."""
    if os.environ.get("PYTHONBREAKPOINT", "") not in ("", "pdb.set_trace"):
        return sys.__breakpointhook__(*args, **kwargs)  # noqa: T100 - the task asks for it
    raise NoTerminal(
        f"breakpoint() in a task: there is no terminal on {_node()}. Instead, {_INSTEAD}. A debugger that needs no "
        "terminal can be named: Image(env={'PYTHONBREAKPOINT': '...'})"
    )


def input_in_task(prompt: object = "", /) -> str:
    """Raise `NoInput`, unless the task has given this process a standard input."""
    if not any(sys.stdin is each for each in _empty) or not _is_empty():
        return _input(prompt)
    frame = inspect.currentframe()
    caller = frame and frame.f_back
    if caller is not None and caller.f_globals.get("__name__") == "cmd":  # pdb, which takes an EOFError for "quit"
        raise NoTerminal(f"a debugger in a task: there is no terminal on {_node()}. Instead, {_INSTEAD}")
    raise NoInput(
        f"input() in a task: there is no terminal on {_node()}. Ask before the call, and pass the answer as an argument"
    )


def _is_empty() -> bool:
    """Whether standard input is still the one that a slot gets, or was closed."""
    try:
        return os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116 - a number of a device
    except OSError:
        return True


def _node() -> str:
    return os.environ.get(NODE, "a node")

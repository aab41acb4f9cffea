"""Pools inside tasks: which may be opened. One that opened more by mistake would go on for ever, and rent machines."""

from __future__ import annotations

import os
import sys
from types import FrameType

from skyward.core.errors import NestedPool
from skyward.core.whoami import DEPTH, current_worker

__all__ = ["RENT", "check", "depth"]

RENT = "SKYWARD_RENT_IN_TASKS"
"""Environment variable of those who want tasks to buy machines."""

_DEEPEST = 1  # a pool in a task; none in that one's tasks

_GUARD = 'Put what opens it below `if __name__ == "__main__":`, or into a function that your program calls'


def depth() -> int:
    """Of how many tasks, one in another, this process is a part; what tasks start counts too."""
    text = os.environ.get(DEPTH, "0")
    return int(text) if text.isdecimal() else 0


def check(names: list[str]) -> None:
    """Refuse to open a pool here, if so.

    Parameters
    ----------
    names
        The providers that would rent machines.

    Raises
    ------
    NestedPool
        The pool is opened by a module that a task or a child process is importing; or a task of a task's pool opens it;
        or it is opened in a task and would rent machines.
    """
    here = depth()
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - its name notwithstanding, as `logging` does
    while frame is not None:
        if frame.f_code.co_name == "<module>" and _is_imported(frame, in_task=here > 0):
            raise NestedPool(_imported(frame))
        frame = frame.f_back
    if here == 0:
        return
    if here > _DEEPEST:
        raise NestedPool(
            f"a task of a pool that a task has opened opens another{_where()}: pools go no deeper, since they might go "
            "on without end. Open it in your program, or in a task of your program's own pool"
        )
    if names and os.environ.get(RENT, "0") in ("", "0"):
        raise NestedPool(
            f"a task would rent machines ({', '.join(names)}){_where()}: if the node were lost, nobody would give them "
            f"back. Open the pool in your program or, if that is meant, set {RENT}=1 (on hosts, by Image(env=...))"
        )


def _is_imported(frame: FrameType, *, in_task: bool) -> bool:
    """Whether a module's own code is run by an import, and not because somebody started it."""
    names = frame.f_globals
    if names.get("__name__") == "__mp_main__":  # the program again, in a child of multiprocessing
        return True
    return in_task and bool(getattr(names.get("__spec__"), "_initializing", False))


def _imported(frame: FrameType) -> str:
    name, place = frame.f_globals["__name__"], f"{frame.f_code.co_filename}:{frame.f_lineno}"
    if name == "__mp_main__":
        return f"the program opens a pool ({place}) when a child process of multiprocessing imports it. {_GUARD}"
    return (
        f"module {name!r} opens a pool when it is imported ({place}), and a task imports it{_where()}: "
        f"each of that pool's tasks would open another. {_GUARD}"
    )


def _where() -> str:
    worker = current_worker()
    return "" if worker is None else f" on node {worker.node}"

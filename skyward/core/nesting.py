"""Which pools may be opened inside tasks. Opened by mistake, they could nest without end and rent machines."""

from __future__ import annotations

import os
import sys
from types import FrameType

from skyward.core.errors import NestedPool
from skyward.core.whoami import DEPTH, current_worker

__all__ = ["RENT", "check", "depth"]

RENT = "SKYWARD_RENT_IN_TASKS"
"""Environment variable that allows tasks to rent machines."""

_MAX_DEPTH = 1  # a task may open a pool, but the tasks of that pool may not

_GUARD = 'Move the code that opens it below `if __name__ == "__main__":`, or into a function that your program calls'


def depth() -> int:
    """How many tasks, one inside another, this process is part of; processes that tasks start count too."""
    text = os.environ.get(DEPTH, "0")
    return int(text) if text.isdecimal() else 0


def check(names: list[str]) -> None:
    """Check whether a pool may be opened here.

    Parameters
    ----------
    names
        Names of the providers that would rent machines.

    Raises
    ------
    NestedPool
        The pool is opened by a module that a task or a child process is importing, by a task of a task's pool, or by a
        task and would rent machines.
    """
    here = depth()
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - despite its name; `logging` uses it too
    while frame is not None:
        if frame.f_code.co_name == "<module>" and _is_imported(frame, in_task=here > 0):
            raise NestedPool(_imported(frame))
        frame = frame.f_back
    if here == 0:
        return
    if here > _MAX_DEPTH:
        raise NestedPool(
            f"a task opens a pool{_where()} although it already runs in a pool that a task opened: pools may not nest "
            "deeper, as they might nest without end. Open it in your program, or in a task of your program's own pool"
        )
    if names and os.environ.get(RENT, "0") in ("", "0"):
        raise NestedPool(
            f"a task would rent machines ({', '.join(names)}){_where()}: if the node were lost, nothing would "
            f"terminate them. Open the pool in your program or, if this is intended, set {RENT}=1 (on hosts, with "
            "Image(env=...))"
        )


def _is_imported(frame: FrameType, *, in_task: bool) -> bool:
    """Whether a module's top-level code runs because it is imported, rather than as a program."""
    names = frame.f_globals
    if names.get("__name__") == "__mp_main__":  # the program, imported again in a child process of multiprocessing
        return True
    return in_task and bool(getattr(names.get("__spec__"), "_initializing", False))


def _imported(frame: FrameType) -> str:
    name, place = frame.f_globals["__name__"], f"{frame.f_code.co_filename}:{frame.f_lineno}"
    if name == "__mp_main__":
        return f"the program opens a pool ({place}) when a child process of multiprocessing imports it. {_GUARD}"
    return (
        f"module {name!r} opens a pool when it is imported ({place}), and a task imports it{_where()}: each task of "
        f"that pool would open another. {_GUARD}"
    )


def _where() -> str:
    worker = current_worker()
    return "" if worker is None else f" on node {worker.node}"

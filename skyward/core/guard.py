"""Reports errors in callbacks and background tasks, so that none fails silently.

asyncio logs an exception that leaves a callback, or a task that nobody awaits, and goes on; whoever waits for its
effect would wait forever. So the callbacks and background tasks of a node's conversation are started through these
functions, which report errors to the conversation, and that breaks the link. `ioloop` reports all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["guarded", "watched"]


def guarded(report: Callable[[Exception], object], function: Callable[..., object], *args: Any) -> None:
    """Call a function and report its error; to be passed to ``call_soon`` and the like in the function's place.

    Parameters
    ----------
    report
        Called with the error.
    function, args
        What to call.
    """
    try:
        function(*args)
    except Exception as error:
        report(error)


def watched(task: asyncio.Task[Any], report: Callable[[Exception], object]) -> None:
    """Report the error of a background task, if it fails."""

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            report(error)

    task.add_done_callback(ended)

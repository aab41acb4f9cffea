"""Makes sure that no callback fails silently: whatever runs on a loop unawaited reports its failure to somebody.

asyncio logs an exception from a callback, or from a task that nobody awaits, and goes on; whoever waits for the outcome
waits forever. So the callbacks and background tasks of a node's session are started through this module and report to
the session, which then breaks the link. `ioloop` gets reports of all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["guarded", "watched"]


def guarded(report: Callable[[Exception], object], function: Callable[..., object], *args: Any) -> None:
    """Call a function and report its failure; give this to ``call_soon`` and the like in place of the function.

    Parameters
    ----------
    report
        Called with the exception.
    function, args
        What to call.
    """
    try:
        function(*args)
    except Exception as error:
        report(error)


def watched(task: asyncio.Task[Any], report: Callable[[Exception], object]) -> None:
    """Report the failure of a background task."""

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            report(error)

    task.add_done_callback(ended)

"""No callback fails silently. What runs on a loop by itself has somebody who is told when it fails unexpectedly.

asyncio logs what comes out of a callback, and of a task that nobody awaits, and goes on; whoever waits for what was to
be done there waits for ever. So callbacks and background tasks of one node's conversation are started through here and
told to that conversation, which breaks the link. `ioloop` hears of all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["guarded", "watched"]


def guarded(told: Callable[[Exception], object], function: Callable[..., object], *args: Any) -> None:
    """Call a function for the loop; to be given to ``call_soon`` and its like in the function's place."""
    try:
        function(*args)
    except Exception as error:
        told(error)


def watched(task: asyncio.Task[Any], told: Callable[[Exception], object]) -> None:
    """Have the failure of a background task told."""

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            told(error)

    task.add_done_callback(ended)

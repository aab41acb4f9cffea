"""Waiting on a condition with a time limit; the lab and its tests never sleep for luck."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["eventually"]

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = 30.0, what: str = "") -> T:
    """Return the condition's first true value; TimeoutError if none came in time.

    The condition is asked every 10 ms and always once more after the time is up.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if late:
            raise TimeoutError(f"not within {timeout:g} s: {what or condition!r}")
        time.sleep(0.01)

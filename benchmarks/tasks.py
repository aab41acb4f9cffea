"""Functions that workers run. Self-contained, since they are sent by value, as from a script."""

from __future__ import annotations

import os
import time

__all__ = ["nothing", "pause", "where"]


def nothing(value: int) -> int:
    """Give back the argument."""
    return value


def pause(value: int, seconds: float) -> int:
    """Give back the argument later. A sleeping task needs no core, so workers may outnumber cores."""
    time.sleep(seconds)
    return value


def where(value: int, seconds: float) -> tuple[int, int]:
    """`pause`, and the process in which it happened."""
    time.sleep(seconds)
    return value, os.getpid()

"""Clocks in addition to an event loop's, which stands still while this machine sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clocks", "asleep"]


def asleep() -> float:
    """Seconds since boot for which this machine slept and its monotonic clock stood still."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class Clocks:
    """Functions that return seconds.

    Attributes
    ----------
    wall
        Since the epoch, as rented machines know it, too.
    asleep
        For which this machine has slept; only the difference of two readings counts.
    """

    wall: Callable[[], float] = time.time
    asleep: Callable[[], float] = asleep

"""What this machine has that this process may use."""

from __future__ import annotations

import os
from collections.abc import Collection

__all__ = ["core_count", "cores", "memory"]


def cores() -> Collection[int]:
    """Return the numbers of the cores that this process may run on; of all cores if the system can't tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def core_count() -> int:
    """Return how many cores this process may run on."""
    return len(cores())


def memory() -> int:
    """Return the machine's memory in bytes, whatever a cgroup allows of it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

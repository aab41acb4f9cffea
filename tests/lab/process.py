"""Telling a process from a later one that was given the same number."""

from __future__ import annotations

from pathlib import Path

__all__ = ["identity"]


def identity(pid: int) -> tuple[int, int] | None:
    """(pid, start time in clock ticks since boot); None if it has ended, waited for or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else (pid, int(fields[19]))

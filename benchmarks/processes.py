"""CPU time and memory of processes, read from /proc. Linux only, no packages needed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterable
from pathlib import Path

__all__ = ["adopt", "cpu_seconds", "descendants", "forget_peak", "kill", "peak_mb", "pss_mb", "rss_mb"]

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")


def adopt() -> None:
    """Become the parent of descendants whose own parent ends, so that daemons stay in this process's tree."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Children of a process, their children, and so on; those in namespaces below ours too."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:  # grows while it is read
        found += children.get(pid, ())
    return found[1:]


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes, and of their children that ended and were waited for."""
    return sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _stat(pid))) / _TICKS


def pss_mb(pids: Iterable[int]) -> float:
    """Memory of these processes together, where a page that n share counts as 1/n for each of them."""
    return sum(_lines(pid, "smaps_rollup").get("Pss", 0) for pid in pids) / 1000


def rss_mb(pid: int) -> float:
    """Memory that a process has in use."""
    return _lines(pid, "status").get("VmRSS", 0) / 1000


def peak_mb(pid: int) -> float:
    """The most that it had in use since `forget_peak`."""
    return _lines(pid, "status").get("VmHWM", 0) / 1000


def forget_peak(pid: int) -> None:
    """Let the peak begin anew from what is in use now."""
    with contextlib.suppress(OSError):  # it may have ended, or belong to somebody else
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def kill(pids: Iterable[int]) -> None:
    """End processes at once; silent about those that have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """The fields after the name (which may hold anything), state first; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _lines(pid: int, name: str) -> dict[str, int]:
    """``Name: 123 kB`` lines of a file in /proc, in units of 1,000 bytes; empty if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return {}
    parted = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 // 1000 for words in parted if words[2:] == ["kB"]}

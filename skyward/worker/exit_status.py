"""How a process died, in words; and whether the kernel's OOM killer ended it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from skyward.worker.forkserver.protocol import HUNG

__all__ = ["OutOfMemory", "describe"]

Kill = Literal["no", "ours", "somebody's", "unknown"]
"""Whether the OOM killer has struck: a process of this agent's, or one of this machine that may be anybody's."""


class OutOfMemory:
    """Reads whether the OOM killer has ended a process, and how much memory there is.

    The kernel counts this for each cgroup (version 2 or 1), and for the whole machine. Only the count of our own cgroup
    says that it was a process of ours.

    Parameters
    ----------
    proc, cgroups
        Where the kernel's files are.
    """

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._group = next((folder for folder in _folders(proc, cgroups) if _killed(folder) is not None), None)
        self._last = self._count()

    def __repr__(self) -> str:
        return f"<OutOfMemory {self._last} in {self._group or 'this machine'}>"

    def look(self) -> Kill:
        """Whether the OOM killer has struck since the last call."""
        before, self._last = self._last, self._count()
        if before is None or self._last is None:
            return "unknown"
        if self._last <= before:
            return "no"
        return "somebody's" if self._group is None else "ours"

    def _count(self) -> int | None:
        return _number(self._proc / "vmstat", "oom_kill") if self._group is None else _killed(self._group)

    def limit(self) -> int | None:
        """Bytes that this agent and its slots may use together; None if that is not known."""
        kilobytes = _number(self._proc / "meminfo", "MemTotal:")
        limits = [] if kilobytes is None else [kilobytes * 1024]
        if self._group is not None:
            for folder in (self._group, *self._group.parents):
                for name in ("memory.max", "memory.limit_in_bytes"):
                    with contextlib.suppress(OSError, ValueError):  # "max" is not a number
                        limits.append(int((folder / name).read_text()))
        return min(limits, default=None)


def _folders(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Where this process's cgroup may be; in a container it is the root of what can be seen."""
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds or "memory" in kinds.split(","):
                root = cgroups / "memory" if kinds else cgroups
                yield from (root / path.lstrip("/"), root)


def _killed(folder: Path) -> int | None:
    found = _number(folder / "memory.events", "oom_kill")
    return _number(folder / "memory.oom_control", "oom_kill") if found is None else found


def _number(file: Path, name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return None


def describe(
    status: int, kill: Kill = "unknown", used: int | None = None, limit: int | None = None, slots: int = 1
) -> str:
    """Describe a wait status, or `HUNG`: ``exit status 3``, say, or ``killed by SIGSEGV``.

    Parameters
    ----------
    status
        The wait status.
    kill
        What `OutOfMemory.look` says.
    used, limit
        The most memory that the process has used, and what there is, in bytes; None if that is not known.
    slots
        How many slots share that memory.
    """
    if status == HUNG:
        return "lost with the process that it was forked from, which did not answer"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code != signal.SIGKILL:
        return f"killed by {name}"
    memory = "" if used is None else f": it used {_bytes(used)}" + ("" if limit is None else f" of {_bytes(limit)}")
    if kill == "no":
        return f"killed by {name}, and the kernel has counted no kill for memory{memory}"
    advice = "use machines with more memory (memory=...)"
    if slots > 1:
        advice = f"have fewer slots than {slots} on a node (Worker(concurrency=...)), or {advice}"
    if kill == "ours":
        return f"killed by the kernel because memory ran out{memory}; {advice}"
    seen = "when memory ran out and the kernel killed a process of that machine"
    why = "perhaps because memory ran out" if kill == "unknown" else seen
    return f"killed by {name}, {why}{memory}; if it was that, {advice}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

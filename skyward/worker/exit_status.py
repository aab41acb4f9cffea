"""How a process has died, in words."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from skyward.worker.forkserver.protocol import HUNG

__all__ = ["OutOfMemory", "describe"]


class OutOfMemory:
    """Detects whether the kernel has killed a process because memory ran out, since the last call.

    Best effort: reads the counters of this process's cgroup (version 2 or 1), or of the whole machine.
    """

    def __init__(self) -> None:
        self._files = [*_cgroup_files(), "/proc/vmstat"]
        self._last = self._count()

    def __repr__(self) -> str:
        return f"<OutOfMemory {self._last}>"

    def happened(self) -> bool:
        """Whether the counter has grown since the last call."""
        before, self._last = self._last, self._count()
        return self._last > before

    def _count(self) -> int:
        total = 0
        for name in self._files:
            with contextlib.suppress(OSError, ValueError), Path(name).open() as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        return total


def _cgroup_files() -> list[str]:
    files = []
    with contextlib.suppress(OSError), Path("/proc/self/cgroup").open() as file:
        for line in file:
            _, kinds, path = line.rstrip("\n").split(":", 2)
            if not kinds:
                files.append(f"/sys/fs/cgroup{path}/memory.events")
            elif "memory" in kinds.split(","):
                files.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
    return files


def describe(status: int, memory: OutOfMemory) -> str:
    """Describe a wait status, or `HUNG`: ``exit status 3``, say, or ``killed by SIGSEGV``."""
    if status == HUNG:
        return "lost with the process that it was forked from, which did not answer"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL:
        name += " (out of memory)" if memory.happened() else " (out of memory?)"
    return f"killed by {name}"

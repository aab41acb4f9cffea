"""How busy this machine is: CPUs, memory and disk, read from the kernel's files. Never raises, never waits long.

Where the agent runs in a container, figures are the container's: its limits, and its use of what it is limited in. What
can't be read is None: some sandboxes have no such files, or nothing in them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from skyward.core.system import machine

__all__ = ["MachineLoad", "Usage", "busy_of"]

_UNLIMITED = 1 << 60  # bytes; version 1 says that there is no limit by a number about as large


class Usage(NamedTuple):
    """See `Load`."""

    cpu: float | None = None
    cores: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    disk_free: int | None = None


class MachineLoad:
    """Measures the load of this machine, or of the container that this process is in.

    Parameters
    ----------
    folder
        Where tasks work.
    root
        The machine's file system.
    cpus
        The processors that tasks may use.
    """

    def __init__(self, folder: str, root: str = "/", cpus: Collection[int] | None = None) -> None:
        self._folder = folder
        self._root = Path(root)
        self._cpus = machine.cores() if cpus is None else cpus
        self._memory = self._memory_limit()
        self._quota = self._cpu_quota()
        self._last = self._clocks()

    def __repr__(self) -> str:
        return f"<MachineLoad of {self._quota or len(self._cpus)} cores, memory {self._memory or 'unlimited'}>"

    def read(self) -> Usage:
        """Measure it; processors since the last time."""
        before, self._last = self._last, self._clocks()
        cpu = None
        if before is not None and self._last is not None and (passed := self._last[1] - before[1]) > 0:
            cpu = min(1.0, max(0.0, (self._last[0] - before[0]) / passed))
        cores = len(self._cpus) if self._quota is None else max(1, round(self._quota))
        return Usage(cpu, cores, *self._memory_use(), self._disk())

    # --- processors ---

    def _cpu_quota(self) -> float | None:
        """How many processors' time the container may take, if it is less than that of those it may run on."""
        quotas = [float(len(self._cpus))]
        for folder in self._groups("cpu"):
            quota, period = [*_numbers(folder / "cpu.max"), -1, -1][:2]
            if period <= 0:
                quota, period = (_number(folder / f"cpu.cfs_{what}_us") or -1 for what in ("quota", "period"))
            if quota > 0 and period > 0:
                quotas.append(quota / period)
        limit = min(quotas)
        return None if limit == len(self._cpus) else limit

    def _clocks(self) -> tuple[float, float] | None:
        """CPU seconds that were used, and that could have been used, since some point in the past."""
        if self._quota is None:
            return busy_of(self._text("proc/stat"), self._cpus)
        for folder in self._groups("cpuacct"):
            used = _number(folder / "cpuacct.usage")
            if used is not None:
                return used / 1e9, time.monotonic() * self._quota
            if (used := _field(folder / "cpu.stat", "usage_usec")) is not None:
                return used / 1e6, time.monotonic() * self._quota
        return None

    # --- memory and disk ---

    def _memory_limit(self) -> tuple[Path, int] | None:
        """The control group with the lowest limit, if it is lower than the machine's memory; and the limit."""
        limits: list[tuple[int, Path]] = []
        for folder in self._groups("memory"):
            for name in ("memory.max", "memory.limit_in_bytes"):
                if (limit := _number(folder / name)) is not None and limit < _UNLIMITED:
                    limits.append((limit, folder))
        if not limits:
            return None
        limit, folder = min(limits)
        total = self._meminfo("MemTotal")
        return None if total is not None and total <= limit else (folder, limit)

    def _memory_use(self) -> tuple[int | None, int | None]:
        if self._memory is None:
            total, free = self._meminfo("MemTotal"), self._meminfo("MemAvailable")
            return None if total is None or free is None else total - free, total
        folder, limit = self._memory
        used = _number(folder / "memory.current")
        if used is None:
            used = _number(folder / "memory.usage_in_bytes")
        cached = 0  # and given up for what is needed
        for name in ("total_inactive_file", "inactive_file"):
            cached = cached or _field(folder / "memory.stat", name) or 0
        return None if used is None else max(0, used - cached), limit

    def _meminfo(self, name: str) -> int | None:
        value = _field(self._root / "proc/meminfo", f"{name}:")
        return None if value is None else value * 1024

    def _disk(self) -> int | None:
        try:
            disk = os.statvfs(self._folder)
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize

    # --- files ---

    def _groups(self, kind: str) -> Iterator[Path]:
        """The folders of this process's control group and those around it, the innermost first; most need not exist."""
        base = self._root / "sys/fs/cgroup"
        for line in self._text("proc/self/cgroup").splitlines():
            _, kinds, path = [*line.split(":", 2), "", ""][:3]
            if kinds and kind not in kinds.split(","):
                continue
            top = base / kind if kinds else base
            inner = top / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(top))

    def _text(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self._root / name).read_text(errors="replace")
        return ""


def busy_of(stat: str, cpus: Collection[int]) -> tuple[float, float] | None:
    """Ticks for which these processors were busy, and all their ticks, by /proc/stat; None if it has none."""
    busy = total = 0
    for line in stat.splitlines():
        name, *fields = line.split()[:9] or [""]
        if name[:3] == "cpu" and name[3:].isdecimal() and int(name[3:]) in cpus:
            ticks = [int(field) for field in fields if field.isdecimal()]  # user, nice, system, idle, iowait, ...
            total += sum(ticks)
            busy += sum(ticks) - sum(ticks[3:5])
    return (float(busy), float(total)) if total else None


def _numbers(path: Path) -> list[int]:
    with contextlib.suppress(OSError, ValueError):
        return [int(word) for word in path.read_text().split()]
    return []


def _number(path: Path) -> int | None:
    return next(iter(_numbers(path)), None)


def _field(path: Path, name: str) -> int | None:
    """The number after a name that begins a line."""
    with contextlib.suppress(OSError, ValueError, IndexError), path.open(errors="replace") as file:
        for line in file:
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return None

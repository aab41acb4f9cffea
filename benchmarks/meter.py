"""Measures wall time, CPU time, bytes over the network and memory of a block of code."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import processes

__all__ = ["OWN_NETWORK", "Lap", "Meter", "loopback"]

OWN_NETWORK = "BENCHMARKS_OWN_NETWORK"
"""Set in the environment of a process that has a loopback device of its own, whose counter is thus only its own."""

Traffic = Mapping[str, int]


@dataclass
class Lap:
    """What a block took; complete once the block has ended."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    driver_peak_mb: float = 0.0
    moved: dict[str, float] = field(default_factory=dict)

    def costs(self, tasks: int) -> dict[str, float]:
        """The figures that stand beside the one that counts."""
        costs = {"wall_s": self.wall_s, "cpu_us_per_task": self.cpu_s / tasks * 1e6}
        return costs | {"driver_peak_mb": self.driver_peak_mb} | self.moved


class Meter:
    """Measures this process with all that descends from it.

    Parameters
    ----------
    traffic
        Counters of bytes, by name. None: the loopback device, if it is our own.
    """

    def __init__(self, traffic: Callable[[], Traffic] | None = None) -> None:
        self._traffic = traffic or loopback

    def __repr__(self) -> str:
        return f"<Meter of {os.getpid()}>"

    @contextlib.contextmanager
    def timed(self) -> Iterator[Lap]:
        """Measure the block. An error in it leaves nothing measured."""
        lap = Lap()
        processes.forget_peak(os.getpid())
        cpu, traffic, began = self._cpu(), self._traffic(), time.perf_counter()
        yield lap
        lap.wall_s = time.perf_counter() - began
        # Workers may still be doing what the block left them to do; that is not waited for.
        lap.cpu_s = self._cpu() - cpu
        lap.driver_peak_mb = processes.peak_mb(os.getpid())
        after = self._traffic()
        lap.moved = {f"{name}_mb": (after[name] - traffic[name]) / 1e6 for name in after}

    def others_mb(self) -> float:
        """Memory of everything but this process, with shared pages counted once."""
        return processes.pss_mb(processes.descendants(os.getpid()))

    @staticmethod
    def _cpu() -> float:
        return processes.cpu_seconds([os.getpid(), *processes.descendants(os.getpid())])


def loopback() -> Traffic:
    """Bytes that crossed the loopback device; nothing where other programs use it too."""
    if OWN_NETWORK not in os.environ:
        return {}
    # Not /sys/class/net, which shows the devices of whoever mounted it.
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return {"wire": int(counters.split()[0])}
    return {}

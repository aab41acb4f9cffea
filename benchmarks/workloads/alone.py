"""What a peer costs before it has done anything: each run is a fresh interpreter with nothing else in it."""

from __future__ import annotations

import compileall
import json
import statistics
import subprocess
import sys
import time
from functools import cache
from importlib.util import find_spec

from benchmarks.model import Figures, Size, Workload

__all__ = ["WORKLOADS"]


def alone(peer: str, nodes: int, slots: int, tasks: int) -> Figures:
    """What `benchmarks.alone` says."""
    _compile()
    command = [sys.executable, "-m", "benchmarks.alone", peer, str(nodes), str(slots), str(tasks), str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise RuntimeError(f"its process ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


@cache
def _compile() -> None:
    """Write byte code for what runs from a checkout. Packages are installed with it; without it imports take more."""
    for package in ("skyward", "benchmarks"):
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            compileall.compile_dir(folder, quiet=2)


def startup(peer: str, run: int, nodes: int, slots: int, times: int) -> Figures:
    """From the with statement to the first result; the median of some starts."""
    found = [alone(peer, nodes, slots, 0) for _ in range(times)]
    return {name: statistics.median(figures[name] for figures in found) for name in found[0]}


def memory(peer: str, run: int, nodes: int, slots: int, tasks: int) -> Figures:
    """What the driver holds after many tasks, and what idle nodes hold."""
    return alone(peer, nodes, slots, tasks)


_HERE = {"nodes": 2, "slots": 2}

WORKLOADS = (
    Workload(
        "startup",
        "from with to the first result",
        "first_result_s",
        startup,
        {
            "smoke": Size(given=_HERE | {"times": 1}),
            "usual": Size(given=_HERE | {"times": 1}),
            "full": Size(given=_HERE | {"times": 2}),
        },
        higher=False,
        places=frozenset({"local"}),
        opens=False,
    ),
    Workload(
        "memory",
        "memory after 100,000 no-op tasks",
        "driver_mb",
        memory,
        {
            "smoke": Size(given=_HERE | {"tasks": 1000}),
            "usual": Size(given=_HERE | {"tasks": 100_000}),
            "full": Size(given=_HERE | {"tasks": 100_000}),
        },
        higher=False,
        places=frozenset({"local"}),
        opens=False,
    ),
)

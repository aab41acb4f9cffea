"""What a task costs one driver, by the number of nodes; and whether its memory grows with what is finished.

::

    python -m benchmarks.scale [--tasks 1000000] [--nodes 10,100,1000]

Nodes are simulated in the driver's own process, over the memory transport: sessions, wire and schedule are real, tasks
are answered at once. So the figures hold the cost of both ends, and are an upper bound of the driver's.
"""

from __future__ import annotations

import argparse
import gc
import os
import threading
import time
from pathlib import Path

from benchmarks.machine import facts
from skyward.core.session import Timing
from tests.core.memory_agent import MemoryPool

_WINDOW = 4  # tasks out for each node
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> float:
    """MB in memory now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e6


def run(nodes: int, tasks: int) -> tuple[float, float, float]:
    """Microseconds of CPU and of time for each task, and the MB by which memory grew in the second half."""
    pool = MemoryPool(timing=Timing(greeting=60.0, silence=60.0))
    try:
        for _ in range(nodes):
            pool.add(slots=1)
        room = threading.Semaphore(_WINDOW * nodes)
        wrong = 0

        def done(future: object, number: int) -> None:
            nonlocal wrong
            wrong += future.result() != number  # type: ignore[attr-defined]
            room.release()

        def submit(numbers: range) -> None:
            for number in numbers:
                room.acquire()
                pool.submit(abs, -number).add_done_callback(lambda future, number=number: done(future, number))
            for _ in range(_WINDOW * nodes):
                room.acquire()
            room.release(_WINDOW * nodes)

        submit(range(_WINDOW * nodes))
        cpu, began = time.process_time(), time.perf_counter()
        submit(range(tasks // 2))
        middle = resident()
        submit(range(tasks // 2, tasks))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
        if wrong:
            raise AssertionError(f"{wrong} wrong results")
        return cpu / tasks * 1e6, wall / tasks * 1e6, resident() - middle
    finally:
        pool.close()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--nodes", default="10,100,1000")
    arguments = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in facts().items()))
    print("| nodes | tasks | CPU µs per task | µs per task | MB grown in the second half |")
    print("|---|---|---|---|---|")
    for nodes in map(int, arguments.nodes.split(",")):
        cpu, wall, grown = run(nodes, arguments.tasks)
        print(f"| {nodes:,} | {arguments.tasks:,} | {cpu:.0f} | {wall:.0f} | {grown:.1f} |")


if __name__ == "__main__":
    main()

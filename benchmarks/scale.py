"""What a task costs one driver, by number of nodes, and whether memory grows with finished tasks.

::

    python -m benchmarks.scale [--tasks 1000000] [--nodes 10,100,1000]

Nodes are simulated in the driver's own process, over the memory transport: sessions, wire and schedule are real, tasks
are answered at once. The CPU time of the simulated nodes and of Python's garbage collector is shown separately.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import threading
import time
from collections import deque
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import facts
from skyward.core.nodes.timing import Timing
from tests.core.memory_agent import MemoryAgent, MemoryPool

_WINDOW = 4  # tasks out for each node
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Cost(NamedTuple):
    """Microseconds for each task: of CPU in all, of CPU in the simulated nodes and in the collector, and of time."""

    cpu: float
    nodes: float
    collector: float
    wall: float
    grown: float
    """MB by which memory grew in the second half."""


class _Shares:
    """CPU seconds in the simulated nodes, and in the garbage collector whoever was at work."""

    def __init__(self) -> None:
        self.nodes = self.collector = 0.0
        self._since = 0.0

    def collects(self, phase: str, _: dict[str, int]) -> None:
        """Called by the collector when it begins and when it ends, in the thread that it has stopped."""
        if phase == "start":
            self._since = time.thread_time()
        else:
            self.collector += time.thread_time() - self._since

    def task(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **rest: Any) -> asyncio.Task[Any]:
        """A loop's factory of tasks: those of simulated nodes are timed."""
        node = getattr(work, "cr_code", None) is MemoryAgent._serve.__code__  # noqa: SLF001 - what all of a node runs in
        return asyncio.Task(_Timed(work, self) if node else work, loop=loop, **rest)


class _Timed(Coroutine[Any, Any, Any]):
    """A coroutine whose CPU time is added up."""

    def __init__(self, work: Coroutine[Any, Any, Any], shares: _Shares) -> None:
        self._work, self._shares = work, shares

    def __await__(self) -> Generator[Any, None, Any]:
        return self._work.__await__()

    def send(self, value: Any) -> Any:
        shares = self._shares
        began, collector = time.thread_time(), shares.collector
        try:
            return self._work.send(value)
        finally:
            shares.nodes += time.thread_time() - began - (shares.collector - collector)

    def throw(self, *error: Any) -> Any:
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()


def resident() -> float:
    """MB in memory now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e6


def run(nodes: int, tasks: int) -> Cost:
    """Open a pool of so many nodes and give it so many tasks."""
    shares = _Shares()
    pool = MemoryPool(timing=Timing(greeting=60.0, silence=60.0))
    try:
        pool.do(pool.io.loop.set_task_factory, shares.task)
        for _ in range(nodes):
            pool.add(slots=1, ran=deque(maxlen=1))  # which would grow with the tasks
        room = threading.Semaphore(_WINDOW * nodes)
        wrong = 0

        def done(future: object, number: int) -> None:
            nonlocal wrong
            wrong += future.result() != number  # type: ignore[attr-defined]
            room.release()

        def submit(count: int) -> tuple[float, float]:
            cpu, began = time.process_time(), time.perf_counter()
            for number in range(count):
                room.acquire()
                pool.submit(abs, -number).add_done_callback(lambda future, number=number: done(future, number))
            for _ in range(_WINDOW * nodes):
                room.acquire()
            room.release(_WINDOW * nodes)
            return time.process_time() - cpu, time.perf_counter() - began

        submit(_WINDOW * nodes)
        gc.callbacks.append(shares.collects)
        shares.nodes = 0.0
        first, collector = submit(tasks // 2), shares.collector
        middle = resident()
        shares.collector = collector  # without what measuring took
        second, collector = submit(tasks - tasks // 2), shares.collector
        if wrong:
            raise AssertionError(f"{wrong} wrong results")
        cpu, wall = (sum(each) for each in zip(first, second, strict=True))
        micro = [seconds / tasks * 1e6 for seconds in (cpu, shares.nodes, collector, wall)]
        return Cost(*micro, resident() - middle)
    finally:
        if shares.collects in gc.callbacks:
            gc.callbacks.remove(shares.collects)
        pool.close()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--nodes", default="10,100,1000")
    arguments = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in facts().items()))
    print(
        "| nodes | tasks | CPU µs per task | the nodes' | the collector's | µs per task | MB grown in the second half |"
    )
    print("|---|---|---|---|---|---|---|")
    for nodes in map(int, arguments.nodes.split(",")):
        cost = run(nodes, arguments.tasks)
        times = " | ".join(f"{part:.0f}" for part in cost[:4])
        print(f"| {nodes:,} | {arguments.tasks:,} | {times} | {cost.grown:.1f} |", flush=True)


if __name__ == "__main__":
    main()

"""What the live page makes of a million tasks on a thousand nodes: the driver's CPU for it, and a browser's frames.

::

    python -m benchmarks.million [--tasks 1000000] [--nodes 1000] [--slots 4]

The nodes are no processes: the events that their tasks would cause reach the page at the times when they would. So its
thread does what it would do in a driver of such a pool, and this machine is free for a browser. The first half of the
tasks is seen by nobody, the second half by Chromium if there is one. Stretches of some seconds, with several messages
to a browser in each, are timed by themselves; printed are the median, and the fastest and the slowest tenth, since
caches are shared with whatever else runs on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.dashboard import handling
from skyward.core.events import Events, MachineInfo, NodeBegun, NodeLoad, NodeReady, PoolStarted, TaskEnded, TasksQueued
from skyward.core.facts import Facts
from skyward.dashboard.serving import Page
from tests.dashboard.browser import Look, chromium, found, opened

__all__ = ["main"]

_SHORT, _LONG = 0.2, 1.0  # seconds that a task takes
_STRETCH = 10.0  # seconds that are timed together
_LOADS = 20.0  # seconds between two loads of a node
_FUNCTIONS = "fit_and_score", "permute", "summarize"
_FRAMES = 200  # that are drawn while somebody scrolls


class _Nodes:
    """Tasks that end one after another on each slot of many nodes."""

    def __init__(self, nodes: int, slots: int, tasks: int) -> None:
        self.chance = random.Random(0)
        self.events = Events()
        self.facts = Facts()
        self.events.subscribe(self.facts.handle, self.facts.kinds)
        self.page = Page("million", 0, self.facts)
        self.events.subscribe(self.page.handle, self.page.kinds)
        self.names = [f"node-{number}" for number in range(nodes)]
        self.ended = 0
        self.events.emit(PoolStarted("million", "somewhere", nodes, slots))
        for name in self.names:
            self.events.emit(NodeBegun(name, MachineInfo("somewhere", "c7i.xlarge", 0.2)))
            self.events.emit(NodeReady(name, slots))
        self.events.emit(TasksQueued(tasks))
        now = time.monotonic()
        self._due = [(now + self._length(), now, number, slot) for number in range(nodes) for slot in range(slots)]
        heapq.heapify(self._due)
        self._loads = now

    def _length(self) -> float:
        return self.chance.uniform(_SHORT, _LONG)

    def run(self, tasks: int) -> list[tuple[float, float]]:
        """Let so many end; for each stretch how many there were a second, and the CPU seconds of the page's thread."""
        assert self.page._thread is not None  # noqa: SLF001 - whose CPU time is wanted
        clock = time.pthread_getcpuclockid(self.page._thread.ident or 0)  # noqa: SLF001 - as above
        stretches, cpu, count, until = [], time.clock_gettime(clock), 0, time.monotonic() + _STRETCH
        goal = self.ended + tasks
        while self.ended < goal:
            count += self._step()
            if time.monotonic() >= until:
                before, cpu = cpu, time.clock_gettime(clock)
                stretches.append((count / _STRETCH, (cpu - before) / _STRETCH))
                count, until = 0, until + _STRETCH
            time.sleep(0.002)  # what is due then comes at once, as what a driver reads from many links
        return stretches

    def _step(self) -> int:
        """Report what has ended by now."""
        now, count = time.monotonic(), 0
        while self._due[0][0] <= now:
            end, start, number, slot = self._due[0]
            heapq.heapreplace(self._due, (end + self._length(), end, number, slot))
            label = _FUNCTIONS[number % len(_FUNCTIONS)]
            name = self.names[number]
            self.events.emit(TaskEnded(1, end - start, ok=True, node=name, slot=slot, label=label, started=start))
            count += 1
        while self._loads <= now:
            self._loads += _LOADS / len(self.names)
            self.events.emit(
                NodeLoad(self.chance.choice(self.names), self.chance.random(), 4, 10**9, 16 * 10**9, 10**11)
            )
        self.ended += count
        return count


def _show(name: str, stretches: list[tuple[float, float]], held: float) -> None:
    counts = [count for count, _ in stretches]
    each = sorted(cpu / count * 1e6 + held for count, cpu in stretches)
    share = sorted(cpu + held * count / 1e6 for count, cpu in stretches)
    tenth = -(-len(each) // 10)
    print(
        f"{name}: {statistics.median(counts):,.0f} tasks a second; the page takes {statistics.median(each):.1f} µs per "
        f"task ({each[tenth - 1]:.1f} in the fastest tenth of the stretches, {each[-tenth]:.1f} in the slowest), "
        f"{statistics.median(share):.1%} of a core ({share[tenth - 1]:.1%} to {share[-tenth]:.1%})",
        flush=True,
    )


def _frames(look: Look) -> str:
    """How long frames take while somebody scrolls."""
    look.page.evaluate("document.getElementById('stream-view').scrollTo(0, 0)")
    before = look.model("page.frames.length")
    for number in range(_FRAMES):
        look.page.evaluate(f"document.getElementById('stream-view').scrollBy(0, {700 if number % 40 < 20 else -700})")
        look.page.evaluate("new Promise(requestAnimationFrame)")
    drawn = sorted(look.model("page.frames")[min(before, look.model("page.frames.length") - 1) :])
    return f"frames take {statistics.median(drawn):.1f} ms, {drawn[-1]:.1f} at worst of {len(drawn)}"


def _measured(nodes: _Nodes, tasks: int, browser: Any) -> None:
    held = min(handling() for _ in range(5))
    _show("nobody looks", nodes.run(tasks // 2), held)
    with opened(browser, nodes.page.link) if browser is not None else contextlib.nullcontext() as look:
        _show("a browser looks", nodes.run(tasks - tasks // 2), held)
        if look is not None:
            memory = look.page.evaluate("performance.memory ? performance.memory.usedJSHeapSize / 1e6 : 0")
            print(f"in Chromium, live: {_frames(look)}; {memory:.0f} MB of JavaScript's memory", flush=True)
            assert look.errors == [], look.errors


def _report(nodes: _Nodes, browser: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.html"
        began = time.perf_counter()
        nodes.page.save(str(path))
        print(f"the report has {path.stat().st_size / 1e6:.1f} MB and is saved in {time.perf_counter() - began:.1f} s")
        if browser is None:
            return
        began = time.perf_counter()
        with opened(browser, path.as_uri()) as look:
            print(f"in Chromium, the report: opened in {time.perf_counter() - began:.1f} s; {_frames(look)}")
            tasks = look.model("model.status.tasks[2]")
            assert tasks == nodes.ended, (tasks, nodes.ended)
            assert look.errors == [], look.errors


@contextlib.contextmanager
def _browser() -> Iterator[Any]:
    if found() is None:
        print("no Chromium here: its figures are left out")
        yield None
        return
    with chromium() as browser:
        yield browser


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=4)
    options = parser.parse_args()
    nodes = _Nodes(options.nodes, options.slots, options.tasks)
    nodes.page.start()
    try:
        with _browser() as browser:
            _measured(nodes, options.tasks, browser)
            _report(nodes, browser)
    finally:
        nodes.page.close()


if __name__ == "__main__":
    main()

"""What the live page costs the driver, and how much a browser is sent, in turns with and without it.

::

    python -m benchmarks.dashboard [--tasks 100000] [--rounds 10] [--nodes 1000]

At first real nodes on this machine run no-op tasks that are sent one by one. Then simulated nodes do, in the driver's
own process, as in `benchmarks.scale`; each tells its load every 20 seconds. Laps take turns: without the page, with it
while nobody looks, and with a reader in another process, which takes what a browser would. The share of the page is
that of its thread, by its own clock, and of what it does when a task ends, which is timed by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from joblib import Parallel, delayed

import skyward as sky
from benchmarks.tasks import nothing
from skyward.core.events import Events, NodeLoad, NodeReady, PoolStarted, TaskEnded
from skyward.core.facts import Facts
from skyward.core.nodes.timing import Timing
from skyward.dashboard.serving import Page
from tests.core.memory_agent import MemoryPool

__all__ = ["Lap", "main"]

_READER = """
import http.cookiejar, sys, urllib.request
link, count = sys.argv[1], 0
opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
opener.open(link).read()
with opener.open(link.partition("?")[0] + "feed") as feed:
    for line in feed:
        count += len(line)
        print(count, flush=True)
"""
_LAPS = "without", "nobody looks", "a browser looks"
_WINDOW = 4  # tasks out for each simulated node


class Lap(NamedTuple):
    """Microseconds of the driver's CPU per task, those of the page's thread, and bytes per second to a browser."""

    cpu: float
    thread: float
    sent: float


class _Reader:
    """Reads the feed in a process of its own while it is open."""

    def __init__(self, link: str) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _READER, link], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # the first message, with everything
        self.count, self._began = 0, time.monotonic()
        self._thread = threading.Thread(target=self._follow, args=(self._process.stdout,))
        self._thread.start()

    def _follow(self, lines: Iterator[str]) -> None:
        first = 0
        for line in lines:
            first = first or int(line)
            self.count = int(line) - first

    def close(self) -> float:
        """End it; bytes per second."""
        rate = self.count / (time.monotonic() - self._began)
        self._process.kill()
        self._process.wait()
        self._thread.join()
        return rate


def _laps(events: Events, page: Page, run: Callable[[], int], rounds: int) -> dict[str, list[Lap]]:
    found: dict[str, list[Lap]] = {name: [] for name in _LAPS}
    everybody = events._listeners  # noqa: SLF001 - the page's can't be left out otherwise
    others = tuple(each for each in everybody if each[0] != page.handle)
    assert page._thread is not None  # noqa: SLF001 - whose CPU time is wanted
    clock = time.pthread_getcpuclockid(page._thread.ident or 0)  # noqa: SLF001 - as above
    for number in range(rounds):
        for name in _LAPS if number % 2 else reversed(_LAPS):
            events._listeners, events._of = others if name == "without" else everybody, {}  # noqa: SLF001 - as above
            reader = _Reader(page.link) if name == "a browser looks" else None
            gc.collect()
            thread, cpu = time.clock_gettime(clock), time.process_time()
            count = run()
            micro = [each / count * 1e6 for each in (time.process_time() - cpu, time.clock_gettime(clock) - thread)]
            found[name].append(Lap(*micro, 0.0 if reader is None else reader.close()))
    events._listeners, events._of = everybody, {}  # noqa: SLF001 - as above
    return found


def local(tasks: int, rounds: int) -> dict[str, list[Lap]]:
    """Two nodes with two slots each on this machine."""
    share = tasks // rounds

    def run() -> int:
        if Parallel(n_jobs=-1, batch_size=1)(delayed(nothing)(i) for i in range(share)) != list(range(share)):
            raise AssertionError("the results of no-op tasks are wrong")
        return share

    plugins = [sky.plugins.joblib()]
    with sky.Compute(nodes=2, concurrency=2, plugins=plugins, console=False, dashboard=True) as pool:
        run()
        page = pool._page  # noqa: SLF001 - its thread is timed
        assert isinstance(page, Page)
        return _laps(pool.events, page, run, rounds)


def simulated(nodes: int, tasks: int, rounds: int) -> dict[str, list[Lap]]:
    """So many nodes in this process."""
    share = tasks // rounds
    pool = MemoryPool(timing=Timing(greeting=60.0, silence=60.0))
    facts = Facts(pool.dispatcher.runner.schedule.at_nodes)
    pool.events.subscribe(facts.handle, facts.kinds)
    page = Page("simulated", 0, facts)
    pool.events.subscribe(page.handle, page.kinds)
    pool.events.emit(PoolStarted("simulated", "memory", nodes, 1))
    room = threading.Semaphore(_WINDOW * nodes)

    def run() -> int:
        for number in range(share):
            room.acquire()
            pool.submit(abs, -number).add_done_callback(lambda _: room.release())
        for _ in range(_WINDOW * nodes):
            room.acquire()
        room.release(_WINDOW * nodes)
        return share

    with contextlib.ExitStack() as stack:
        stack.callback(pool.close)
        for number in range(nodes):
            pool.add(slots=1)
            pool.events.emit(NodeReady(f"m{number}", 1))
        page.start()
        stack.callback(page.close)
        stack.enter_context(_loads(pool.events, nodes))
        run()
        return _laps(pool.events, page, run, rounds)


@contextlib.contextmanager
def _loads(events: Events, nodes: int) -> Iterator[None]:
    """Each node tells its load every 20 seconds."""
    over = threading.Event()

    def tell() -> None:
        number = 0
        while not over.wait(20 / nodes):
            events.emit(NodeLoad(f"m{number % nodes}", number % 100 / 100, 4, number % 10**9, 10**9, 10**10))
            number += 1

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def handling() -> float:
    """Microseconds for which the page holds up whoever reports the end of a task."""
    page, count = Page("timed", 0, Facts()), 50_000
    events = Events()
    event = TaskEnded(1, 0.001, ok=True, node="a", slot=0, label="f", started=1.0)
    nobody = _emits(events, event, count)
    events.subscribe(page.handle, page.kinds)
    took = _emits(events, event, count)
    page.close()
    return (took - nobody) / count * 1e6


def _emits(events: Events, event: TaskEnded, count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        events.emit(event)
    return time.process_time() - began


def _show(found: dict[str, list[Lap]], where: str, held: float) -> None:
    print(f"\n{where}\n\n| | CPU µs per task (min to max) | of these the page's | share | bytes/s to a browser |")
    print("|---|---|---|---|---|")
    for name, laps in found.items():
        cpu, thread, sent = (statistics.median(lap[column] for lap in laps) for column in range(3))
        ours = thread + (0.0 if name == "without" else held)
        low, high = min(lap.cpu for lap in laps), max(lap.cpu for lap in laps)
        print(
            f"| {name} | {cpu:.1f} ({low:.1f} to {high:.1f}) | {ours:.2f} | {ours / cpu:.1%} | {sent:,.0f} |",
            flush=True,
        )


def main() -> None:
    """Print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=1000)
    options = parser.parse_args()
    held = min(handling() for _ in range(5))
    print(f"the end of a task is put aside within {held:.2f} µs")
    _show(local(options.tasks, options.rounds), "2 nodes with 2 slots on this machine", held)
    rounds = max(2, options.rounds // 4)  # longer ones: with so many nodes, messages are seldom
    _show(simulated(options.nodes, options.tasks, rounds), f"{options.nodes:,} simulated nodes", held)


if __name__ == "__main__":
    main()

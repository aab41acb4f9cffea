"""What `joblib.Memory` costs in a pool, beside plain joblib: ``python -m benchmarks.caching [ENTRIES]``.

Each figure is the median of single calls, or the time of all divided by their number, in microseconds. Plain joblib
runs in the same process, on the same folder, alternating with the pool.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from joblib import Memory, Parallel, delayed

import skyward as sky

__all__ = ["main"]

_SINGLE = 2000  # calls that are timed one by one


def add(x: int, y: int = 1) -> int:
    """The function: as little work as possible."""
    return x + y


def median(call: Callable[[int], Any], arguments: Iterable[int]) -> float:
    """Microseconds of one call."""
    times = []
    for argument in arguments:
        began = time.perf_counter()
        call(argument)
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)


def each(run: Callable[[], Any], count: int) -> float:
    """Microseconds of each of many calls."""
    began = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - began) / count


def main(entries: int = 100_000) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="caching-") as folder:
        cached = Memory(folder, verbose=0).cache(add)
        with sky.Compute(concurrency=2, plugins=[sky.plugins.joblib()], console=False) as pool:

            def sweep(start: int, count: int) -> Any:
                return Parallel(n_jobs=-1)(delayed(cached)(x) for x in range(start, start + count))

            def nested(x: int) -> int:
                return int(cached(x))

            def submit(x: int) -> int:
                return pool.submit(cached, x).result()

            print(
                f"{entries:,} entries computed and kept, Parallel: {each(lambda: sweep(0, entries), entries):.0f} each"
            )
            few = min(entries, 10_000)
            plain = each(lambda: [cached(x) for x in range(-few, 0)], few)
            print(f"{few:,} entries computed and kept, plain joblib in one process: {plain:.0f} each")
            for _ in range(3):
                theirs, ours = median(cached, range(_SINGLE)), median(submit, range(_SINGLE))
                print(f"a hit: plain joblib {theirs:.0f}, pool.submit {ours:.0f}")
            print(f"{entries:,} hits, Parallel: {each(lambda: sweep(0, entries), entries):.0f} each")
            median(lambda x: pool.submit(nested, x).result(), range(100))
            for way, shared in (("in the folder", True), ("asked of the driver", False)):
                pool.dispatcher.context.shared = shared
                hit = median(lambda x: pool.submit(nested, x).result(), range(500))
                print(f"a task with a hit {way}: {hit:.0f}")
            print(f"a task with none: {median(lambda x: pool.submit(add, x).result(), range(500)):.0f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

"""Rates of tasks that do nothing, through joblib: this machine's pool against loky, alternating in one run.

::

    python benchmarks/small_tasks.py [--runs 7] [--nodes 2] [--concurrency 2]

Absolute figures depend on the machine and on what else it does; quote the ratio. Both have nodes x concurrency worker
processes, which are started before the first measurement.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from joblib import Parallel, delayed

import skyward as sky
from skyward.integrations.joblib import sklearn_backend

WORKLOADS: dict[str, tuple[int, int | str]] = {
    "3000 tasks, batch_size=1": (3000, 1),
    "20000 tasks, batch_size=auto": (20_000, "auto"),
}


def rate(count: int, batch_size: int | str, n_jobs: int) -> float:
    """Tasks per second of one `Parallel` call, whose results are checked."""
    began = time.perf_counter()
    results = Parallel(n_jobs=n_jobs, batch_size=batch_size)(delayed(abs)(-i) for i in range(count))
    seconds = time.perf_counter() - began
    if results != list(range(count)):
        raise AssertionError("wrong results")
    return count / seconds


def call(n_jobs: int) -> float:
    """Milliseconds of one call of four tasks."""
    began = time.perf_counter()
    Parallel(n_jobs=n_jobs)(delayed(abs)(-i) for i in range(4))
    return (time.perf_counter() - began) * 1000


def compare(name: str, runs: int, ours: Callable[[], float], loky: Callable[[], float]) -> None:
    """Measure in turn, and print medians, spreads and the ratio pair by pair."""
    ours(), loky()
    pairs = [(ours(), loky()) for _ in range(runs)]
    for who, values in zip(("skyward", "loky"), zip(*pairs, strict=True), strict=True):
        print(f"{name:32} {who:8} {statistics.median(values):10,.1f}  ({min(values):,.1f} to {max(values):,.1f})")
    print(f"{name:32} {'ratio':8} {statistics.median(a / b for a, b in pairs):10.2f}")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=2)
    arguments = parser.parse_args()
    slots = arguments.nodes * arguments.concurrency
    with sky.Compute(nodes=arguments.nodes, concurrency=arguments.concurrency, console=False) as pool:

        def on_the_pool(measure: Callable[..., float], *parameters: Any) -> float:
            with sklearn_backend(pool):
                return measure(*parameters, -1)

        for name, (count, batch_size) in WORKLOADS.items():
            compare(
                f"{name} [1/s]",
                arguments.runs,
                lambda count=count, size=batch_size: on_the_pool(rate, count, size),  # type: ignore[misc]
                lambda count=count, size=batch_size: rate(count, size, slots),  # type: ignore[misc]
            )
        compare("call of 4 tasks [ms]", arguments.runs, lambda: on_the_pool(call), lambda: call(slots))


if __name__ == "__main__":
    main()

"""What `sky.explain` predicts beside what was then measured, for several kinds of calls: here, and on the lab's hosts.

::

    python -m benchmarks.explaining [--hosts 2]

Times are those of the call in an open pool, in seconds. What machines take to start is printed by itself. Hosts need
root. How fast the line to them is, which `sky.explain` can't know, is measured first and given as ``bandwidth=``. Hosts
have one half of this machine's cores and this program the other, since a real host's cores are its own: what encrypts
an array here would else take time from its tasks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import skyward as sky
from skyward.core.interfaces import Provider
from skyward.core.system.machine import core_count
from tests.lab import Lab

_SENT = 80_000_000  # bytes of an array whose sending tells how fast the line is


def sleep(seconds: float) -> float:
    """Wait."""
    time.sleep(seconds)
    return seconds


def sum_up(data: np.ndarray, row: int) -> float:
    """Look at all of a large array."""
    return float(np.sqrt(np.abs(data) + row).sum())


def write_and_read(number: int) -> int:
    """Use the disk, and wait for it."""
    with tempfile.TemporaryFile() as file:
        for _ in range(10):
            file.write(bytes(200_000))
            file.flush()
            time.sleep(0.01)
        file.seek(0)
        return len(file.read()) + number


class Call(NamedTuple):
    """One workload."""

    name: str
    make: Callable[[], Callable[[], object]]
    """Prepares the data, and returns the call."""


def _search() -> Callable[[], object]:
    data, target = make_classification(1500, 20, random_state=0)
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10, 100], "gamma": [0.01, 0.1, 1]}, n_jobs=-1, refit=False, cv=4)
    return lambda: search.fit(data, target)


def _forest() -> Callable[[], object]:
    data, target = make_classification(4000, 20, random_state=0)
    forest = RandomForestClassifier(60, n_jobs=-1, random_state=0)
    return lambda: forest.fit(data, target)


def _array() -> Callable[[], object]:
    data = np.random.default_rng(0).random(10_000_000)

    def call() -> object:
        data[0] += 1  # else the nodes would have it from the last time, and nothing would be sent
        return Parallel(n_jobs=-1)(delayed(sum_up)(data, row) for row in range(40))

    return call


CALLS = [
    Call("sleep", lambda: lambda: Parallel(n_jobs=-1)(delayed(sleep)(0.2) for _ in range(60))),
    Call("SVC search", _search),
    Call("forest", _forest),
    Call("80 MB array", _array),
    Call("I/O", lambda: lambda: Parallel(n_jobs=-1)(delayed(write_and_read)(number) for number in range(80))),
    Call(
        "straggler",
        lambda: lambda: Parallel(n_jobs=-1)(delayed(sleep)(5.0 if number == 40 else 0.2) for number in range(50)),
    ),
    Call("don't", lambda: lambda: Parallel(n_jobs=-1)(delayed(sleep)(0.01) for _ in range(50))),
]


@contextlib.contextmanager
def _lab(count: int) -> Iterator[Provider]:
    cores = sorted(os.sched_getaffinity(0))
    middle = len(cores) // 2
    with Lab() as lab:
        os.sched_setaffinity(0, cores[middle:])
        hosts = lab.up(count)
        os.sched_setaffinity(0, cores[:middle] or cores)
        yield sky.SSH([host.address for host in hosts], user="root", key=str(lab.key), known_hosts=str(lab.known_hosts))


def _bandwidth(pool: sky.Compute, rounds: int) -> float:
    """Bytes per second to a node: the median of some arrays that are sent to tasks that do nothing with them."""
    found = []
    for seed in range(rounds + 1):
        data = np.random.default_rng(seed).integers(0, 256, _SENT, np.uint8)
        began = time.perf_counter()
        pool.submit(len, data).result()
        found.append(_SENT / (time.perf_counter() - began))
    return statistics.median(found[1:])


def _compare(provider: Provider, nodes: int, slots: int, calls: list[Call], rounds: int) -> None:
    """Predict and measure in turns, since the machine may be busy with other things."""
    began = time.perf_counter()
    with sky.Compute(provider, nodes=nodes, concurrency=slots, plugins=[sky.plugins.sklearn()], console=False) as pool:
        start = time.perf_counter() - began
        bandwidth = _bandwidth(pool, rounds)
        what = f"{provider.name}, nodes x slots: {nodes} x {slots}"
        print(f"\n{what}; started in {start:.1f} s; {bandwidth / 1e6:.0f} MB/s")
        print(f"{'':14} {'predicted':>9} {'measured':>9} {'error':>7} {'explain took':>13}  worth it", flush=True)
        for call in calls:
            made, results = call.make(), []
            made()  # slots import what the call needs
            for _ in range(rounds):
                began = time.perf_counter()
                found = sky.explain(made, provider, nodes=nodes, concurrency=slots, bandwidth=bandwidth)
                explained = time.perf_counter()
                made()
                results.append((found.options[0].forecast.call, time.perf_counter() - explained, explained - began))
            predicted, measured, took = map(statistics.median, zip(*results, strict=True))
            times = f"{predicted:9.2f} {measured:9.2f} {predicted / measured - 1:+7.0%} {took:13.1f}"
            print(f"{call.name:14} {times}  {'yes' if found.worthwhile else 'no'}", flush=True)


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=0, help="how many hosts of the lab to use as well")
    parser.add_argument("--only", default="", help="names of calls, separated by commas")
    parser.add_argument("--skip-local", action="store_true", help="leave out this machine")
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are printed")
    arguments = parser.parse_args()
    calls = [call for call in CALLS if not arguments.only or call.name in arguments.only.split(",")]
    if not arguments.skip_local:
        _compare(sky.Local(), 1, core_count(), calls, arguments.rounds)
    if arguments.hosts:
        cores = core_count()
        with _lab(arguments.hosts) as provider:
            slots = max(1, (cores - core_count()) // arguments.hosts)
            _compare(provider, arguments.hosts, slots, calls, arguments.rounds)


if __name__ == "__main__":
    main()

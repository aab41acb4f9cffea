"""A node that dies in the middle of a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from joblib import Parallel, delayed

from benchmarks.model import Figures, Scale, Size, Stage, Workload
from benchmarks.tasks import where

__all__ = ["WORKLOADS"]


def fault(stage: Stage, run: int, count: int, seconds: float, after: float) -> Figures:
    """The processes of one node are killed."""
    workers = stage.setting.workers
    left = workers if stage.replaces else workers - stage.setting.slots
    return _struck(stage, stage.kill_node, left, count, seconds, after)


def blackout(stage: Stage, run: int, count: int, seconds: float, after: float) -> Figures:
    """One host loses its power, so that no packet tells of it."""
    return _struck(stage, stage.cut_power, stage.setting.workers - stage.setting.slots, count, seconds, after)


def _struck(
    stage: Stage, strike: Callable[[], None] | None, left: int, count: int, seconds: float, after: float
) -> Figures:
    """Strike while tasks run; the seconds lost are those beyond what the workers that are `left` need from then on."""
    if strike is None:
        raise NotImplementedError("it has no node that could be lost")
    struck: list[float] = []

    def act() -> None:
        strike()
        struck.append(time.perf_counter())

    timer = threading.Timer(after, act)
    timer.name = "benchmarks-fault"
    began = time.perf_counter()
    timer.start()
    try:
        with stage.timed() as lap:
            results = Parallel(n_jobs=stage.n_jobs)(delayed(where)(i, seconds) for i in range(count))
    finally:
        timer.cancel()
        timer.join()
    if [value for value, _ in results] != list(range(count)):
        raise AssertionError("results are wrong after a node was lost")
    if not struck:
        raise AssertionError(f"no node was lost within the call, after {after} s")
    done = (struck[0] - began) * stage.setting.workers
    needed = struck[0] - began + (count * seconds - done) / left
    figures = {"seconds_lost": lap.wall_s - needed, "processes": float(len({pid for _, pid in results}))}
    return figures | lap.costs(count)


_SIZES: dict[Scale, Size] = {
    "smoke": Size(given={"count": 30, "seconds": 0.1, "after": 0.3}),
    "usual": Size(given={"count": 100, "seconds": 0.2, "after": 2.0}),
    "full": Size(given={"count": 200, "seconds": 0.2, "after": 5.0}),
}

WORKLOADS = (
    Workload(
        "fault",
        "0.2 s tasks, kill -9 of one node of two",
        "seconds_lost",
        fault,
        _SIZES,
        higher=False,
        fresh=True,
        ideal=0.0,
    ),
    Workload(
        "blackout",
        "0.2 s tasks, one host of two loses its power",
        "seconds_lost",
        blackout,
        {scale: size for scale, size in _SIZES.items() if scale != "usual"},  # silence takes long to be believed
        higher=False,
        fresh=True,
        places=frozenset({"lab"}),
        ideal=0.0,
    ),
)

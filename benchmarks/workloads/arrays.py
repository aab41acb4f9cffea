"""Arrays sent to the nodes and back. Results must equal a sequential run's to the last bit.

Each run makes arrays of its own, so that no peer gets from an earlier run what it may have kept. The figure `bit_equal`
is 0 where sums differ in their last bits (as they do when a peer hands over misaligned arrays); more than that is an
error.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed

from benchmarks.model import Figures, Place, Scale, Size, Stage, Workload

__all__ = ["WORKLOADS", "close_enough", "noise"]

_Array = npt.NDArray[np.float64]


def total(array: _Array) -> float:
    """The sum of all elements, so that all must have arrived."""
    return float(array.sum())


def part(array: _Array, at: int, parts: int) -> float:
    """The sum of one of so many parts of a shared array."""
    return float(array[at * len(array) // parts : (at + 1) * len(array) // parts].sum())


def held(array: _Array, seconds: float) -> int:
    """Keep a shared array in use for a while, all of it mapped, and say which process did."""
    array.sum()
    time.sleep(seconds)
    return os.getpid()


def ramp(start: int, length: int) -> _Array:
    """An array that tells its elements by their place."""
    return np.arange(start, start + length, dtype=np.float64)


def noise(run: int, length: int) -> _Array:
    """Numbers that no compression makes shorter."""
    return np.random.default_rng(run).random(length)


def close_enough(found: Sequence[float], wanted: Sequence[float]) -> float:
    """1.0 if all are equal to the last bit, 0.0 if only nearly; otherwise an error."""
    if list(found) == list(wanted):
        return 1.0
    if len(found) != len(wanted) or not all(map(math.isclose, found, wanted)):
        raise AssertionError("what tasks computed from their arrays is wrong")
    return 0.0


def payload_in(stage: Stage, run: int, count: int, mb: int) -> Figures:
    """Each task has an array of its own."""
    length = mb * 125_000
    arrays = np.split(noise(run, count * length), count)
    with stage.timed() as lap:
        sums = Parallel(n_jobs=stage.n_jobs)(delayed(total)(array) for array in arrays)
    equal = close_enough(sums, [total(array) for array in arrays])
    return {"mb_per_s": count * mb / lap.wall_s, "bit_equal": equal, **lap.costs(count)}


def payload_out(stage: Stage, run: int, count: int, mb: int) -> Figures:
    """Each task returns an array."""
    length = mb * 125_000
    with stage.timed() as lap:
        arrays = Parallel(n_jobs=stage.n_jobs)(delayed(ramp)(run + i, length) for i in range(count))
    if not all(np.array_equal(array, ramp(run + i, length)) for i, array in enumerate(arrays)):
        raise AssertionError("the arrays that tasks returned are wrong")
    return {"mb_per_s": count * mb / lap.wall_s, "bit_equal": 1.0, **lap.costs(count)}


def shared(stage: Stage, run: int, count: int, mb: int) -> Figures:
    """All tasks have the same array; then the same call again, and a look at the memory that workers share."""
    array = noise(run, mb * 125_000)
    wanted = [part(array, i, count) for i in range(count)]
    idle = stage.meter.others_mb()
    with stage.timed() as first:
        sums = Parallel(n_jobs=stage.n_jobs)(delayed(part)(array, i, count) for i in range(count))
    with stage.timed() as second:
        again = Parallel(n_jobs=stage.n_jobs)(delayed(part)(array, i, count) for i in range(count))
    equal = min(close_enough(sums, wanted), close_enough(again, wanted))
    figures = {"bit_equal": equal, "second_wall_s": second.wall_s, **first.costs(count)}
    figures |= {f"second_{name}": value for name, value in second.moved.items()}
    figures["pss_per_node_mb"] = (_in_use_mb(stage, array) - idle) / stage.setting.nodes
    return figures


def _in_use_mb(stage: Stage, array: _Array) -> float:
    """The most memory that workers had together while each held the array."""
    seen, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            seen.append(stage.meter.others_mb())

    watch = threading.Thread(target=look, name="benchmarks-memory")
    watch.start()
    try:
        Parallel(n_jobs=stage.n_jobs, batch_size=1)(delayed(held)(array, 0.5) for _ in range(stage.setting.workers))
    finally:
        done.set()
        watch.join()
    return max(seen)


def wan_upload(stage: Stage, run: int, mb: int) -> Figures:
    """One large array to one node that is far away."""
    array = noise(run, mb * 125_000)
    with stage.timed() as lap:
        sums = Parallel(n_jobs=stage.n_jobs)([delayed(total)(array)])
    equal = close_enough(sums, [total(array)])
    return {"mb_per_s": mb / lap.wall_s, "bit_equal": equal, **lap.costs(1)}


_PAYLOAD: dict[Scale, Size] = {
    "smoke": Size(given={"count": 4, "mb": 2}),
    "usual": Size(given={"count": 64, "mb": 8}),
    "full": Size(given={"count": 64, "mb": 8}),
}
_COPIES: dict[Place, str] = {"local": "memcpy", "lab": "ssh-forward"}

WORKLOADS = (
    Workload(
        "payload_in",
        "64 tasks, each with an array of 8 MB of its own",
        "mb_per_s",
        payload_in,
        _PAYLOAD,
        packages=("numpy",),
        limits=_COPIES,
    ),
    Workload(
        "payload_out",
        "64 tasks that return 8 MB each",
        "mb_per_s",
        payload_out,
        _PAYLOAD,
        packages=("numpy",),
        limits=_COPIES,
    ),
    Workload(
        "shared",
        "64 tasks with the same array of 200 MB",
        "wall_s",
        shared,
        {
            "smoke": Size(given={"count": 8, "mb": 8}),
            "usual": Size(given={"count": 64, "mb": 200}),
            "full": Size(given={"count": 64, "mb": 200}),
        },
        higher=False,
        packages=("numpy",),
        limits=_COPIES,
    ),
    Workload(
        "wan_upload",
        "500 MB to one node over a round trip of 50 ms",
        "mb_per_s",
        wan_upload,
        {
            "smoke": Size(nodes=1, given={"mb": 8}),
            "usual": Size(nodes=1, given={"mb": 500}),
            "full": Size(nodes=1, given={"mb": 500}),
        },
        delay=0.025,
        places=frozenset({"lab"}),
        packages=("numpy",),
        limits={"lab": "tcp-lab"},
    ),
)

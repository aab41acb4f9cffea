"""Tasks that do nothing, so that all time is overhead."""

from __future__ import annotations

import statistics
import time
from typing import Literal

from joblib import Parallel, delayed

from benchmarks.model import Figures, Place, Size, Stage, Workload
from benchmarks.tasks import nothing

__all__ = ["WORKLOADS"]


def _rate(stage: Stage, count: int, batch_size: int | Literal["auto"]) -> Figures:
    with stage.timed() as lap:
        results = Parallel(n_jobs=stage.n_jobs, batch_size=batch_size)(delayed(nothing)(i) for i in range(count))
    if results != list(range(count)):
        raise AssertionError("the results of no-op tasks are wrong")
    return {"tasks_per_s": count / lap.wall_s, **lap.costs(count)}


def noop_single(stage: Stage, run: int, count: int) -> Figures:
    """Each task in a batch of its own."""
    return _rate(stage, count, 1)


def noop(stage: Stage, run: int, count: int) -> Figures:
    """Batches as joblib chooses them."""
    return _rate(stage, count, "auto")


def call(stage: Stage, run: int, calls: int) -> Figures:
    """A `Parallel` call of four tasks, again and again."""
    took = []
    with stage.timed() as lap:
        for _ in range(calls):
            began = time.perf_counter()
            results = Parallel(n_jobs=stage.n_jobs)(delayed(nothing)(i) for i in range(4))
            took.append((time.perf_counter() - began) * 1000)
            if results != [0, 1, 2, 3]:
                raise AssertionError("the results of four no-op tasks are wrong")
    return {"call_ms": statistics.median(took), **lap.costs(4 * calls)}


_NOTHING: dict[Place, str] = {"local": "nothing", "lab": "nothing"}

WORKLOADS = (
    Workload(
        "noop_single",
        "no-op tasks, batch_size=1",
        "tasks_per_s",
        noop_single,
        {
            "smoke": Size(given={"count": 200}),
            "usual": Size(given={"count": 3000}),
            "full": Size(given={"count": 3000}),
        },
        limits=_NOTHING,
    ),
    Workload(
        "noop",
        'no-op tasks, batch_size="auto"',
        "tasks_per_s",
        noop,
        {
            "smoke": Size(given={"count": 2000}),
            "usual": Size(given={"count": 20_000}),
            "full": Size(given={"count": 20_000}),
        },
        limits=_NOTHING,
    ),
    Workload(
        "call",
        "one Parallel call of 4 no-op tasks, repeated",
        "call_ms",
        call,
        {"smoke": Size(given={"calls": 5}), "usual": Size(given={"calls": 50}), "full": Size(given={"calls": 100})},
        higher=False,
        limits=_NOTHING,
    ),
)

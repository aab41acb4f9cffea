"""Tasks that sleep: what counts is the share of the workers' time that they fill."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from joblib import Parallel, delayed

from benchmarks.model import Figures, Size, Stage, Workload
from benchmarks.tasks import pause

__all__ = ["WORKLOADS"]

_WAY = 0.025
"""Seconds to a far node, so that a round trip takes 50 ms."""


def _efficiency(stage: Stage, naps: Sequence[float], batch_size: int | Literal["auto"] = "auto") -> Figures:
    """The share of the workers' time in which tasks ran."""
    with stage.timed() as lap:
        results = Parallel(n_jobs=stage.n_jobs, batch_size=batch_size)(
            delayed(pause)(i, nap) for i, nap in enumerate(naps)
        )
    if results != list(range(len(naps))):
        raise AssertionError("the results of sleeping tasks are wrong")
    return {"efficiency": sum(naps) / (stage.setting.workers * lap.wall_s), **lap.costs(len(naps))}


def uneven(stage: Stage, run: int, count: int) -> Figures:
    """1 to 100 ms mixed, the same mixture for everybody."""
    naps = [0.001 + 0.099 * i / (count - 1) for i in range(count)]
    random.Random(run).shuffle(naps)
    return _efficiency(stage, naps)


def sleep(stage: Stage, run: int, count: int, seconds: float) -> Figures:
    """All the same."""
    return _efficiency(stage, [seconds] * count)


def wan(stage: Stage, run: int, count: int, seconds: float) -> Figures:
    """All the same, each in a batch of its own."""
    return _efficiency(stage, [seconds] * count, 1)


WORKLOADS = (
    Workload(
        "uneven",
        "uneven tasks, 1 to 100 ms mixed",
        "efficiency",
        uneven,
        {"smoke": Size(given={"count": 24}), "usual": Size(given={"count": 200}), "full": Size(given={"count": 400})},
        ideal=1.0,
    ),
    Workload(
        "sleep",
        "0.5 s tasks on 10 x 10",
        "efficiency",
        sleep,
        {
            "smoke": Size(given={"count": 16, "seconds": 0.05}),
            "full": Size(10, 10, {"count": 2000, "seconds": 0.5}),
        },
        fresh=True,  # hundreds of processes: one peer at a time
        ideal=1.0,
        patience=300.0,
    ),
    Workload(
        "sleep_long",
        "5 s tasks on 10 x 10",
        "efficiency",
        sleep,
        {"full": Size(10, 10, {"count": 2000, "seconds": 5.0})},
        fresh=True,
        ideal=1.0,
        patience=400.0,
    ),
    Workload(
        "wan",
        "10 ms tasks, batch_size=1, over a round trip of 50 ms",
        "efficiency",
        wan,
        {
            "smoke": Size(given={"count": 40, "seconds": 0.01}),
            "usual": Size(given={"count": 1000, "seconds": 0.01}),
            "full": Size(given={"count": 1000, "seconds": 0.01}),
        },
        delay=_WAY,
        places=frozenset({"lab"}),
        ideal=1.0,
    ),
    Workload(
        "wan_auto",
        '10 ms tasks, batch_size="auto", over a round trip of 50 ms',
        "efficiency",
        sleep,
        {
            "smoke": Size(given={"count": 40, "seconds": 0.01}),
            "usual": Size(given={"count": 1000, "seconds": 0.01}),
            "full": Size(given={"count": 1000, "seconds": 0.01}),
        },
        delay=_WAY,
        places=frozenset({"lab"}),
        ideal=1.0,
    ),
)

"""The process in which one peer runs one workload, run after run: ``python -m benchmarks.runner PEER WORKLOAD SCALE``.

It reports on standard output, in lines of JSON, that it is ready; then, for each run number it reads, what that run
measured or why it failed. It ends when its input does, and so do all its descendants.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any

from benchmarks import processes
from benchmarks.model import Figures, Peer, Scale, Stage, Workload

__all__ = ["main"]


def main(peer_name: str, workload_name: str, scale: Scale) -> None:
    """Do as the module says."""
    answers = _own_output()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that blocks are left in order
    processes.adopt()
    try:
        from benchmarks.peers import PEERS  # noqa: PLC0415 - an error of an import is an answer too
        from benchmarks.workloads import WORKLOADS  # noqa: PLC0415 - as above

        with _ready(PEERS[peer_name], WORKLOADS[workload_name], scale) as run:
            _say(answers, {"ready": True})
            for line in sys.stdin:
                _say(answers, _attempt(run, int(line)))
    except Exception as error:
        _say(answers, _told(error))
    finally:
        processes.kill(processes.descendants(os.getpid()))


@contextlib.contextmanager
def _ready(peer: Peer, workload: Workload, scale: Scale) -> Iterator[Callable[[int], Figures]]:
    """The workload as a function of the number of the run."""
    given = workload.sizes[scale].given
    if not workload.opens:
        yield lambda run: workload.run(peer.name, run, **given)
        return
    _send_ours_by_value()
    with peer.open(workload.setting(scale)) as stage:
        measure = functools.partial(workload.run if peer.instead is None else peer.instead[workload.name], stage)
        _warm_up(workload, stage, measure)
        yield lambda run: measure(run, **given)


def _send_ours_by_value() -> None:
    """Let tasks travel as those of a user's script do, since nodes can't import this package."""
    import cloudpickle  # noqa: PLC0415

    import benchmarks  # noqa: PLC0415 - see `main`

    cloudpickle.register_pickle_by_value(benchmarks)  # Ray and ipyparallel have their own, and find ours on the disk


def _warm_up(workload: Workload, stage: Stage, measure: Callable[..., Any]) -> None:
    """A small run that is not measured: workers have started, and have imported what tasks need."""
    if workload.fresh:  # a run would use the peer up
        from joblib import Parallel, delayed  # noqa: PLC0415

        from benchmarks.tasks import pause  # noqa: PLC0415 - joblib is imported late, see `main`

        Parallel(n_jobs=stage.n_jobs)(delayed(pause)(i, 0.01) for i in range(2 * stage.setting.workers))
    else:
        measure(-1 % 2**32, **workload.sizes["smoke"].given)


def _attempt(run: Callable[[int], Figures], number: int) -> dict[str, object]:
    try:
        return {"figures": run(number)}
    except Exception as error:
        traceback.print_exc()
        return _told(error)


def _told(error: Exception) -> dict[str, object]:
    return {"error": f"{type(error).__name__}: {error}"[:500]}


def _own_output() -> IO[str]:
    """Keep standard output for answers: what peers and their workers print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], answer: dict[str, object]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type] # only `series` starts it

"""One peer in a fresh interpreter: how long until its first result, and how much memory it holds.

``python -m benchmarks.alone PEER NODES SLOTS TASKS BORN`` prints a line of JSON; BORN is when the caller started it.
Nothing is imported before the clock runs but what every user has, the standard library: so no module is used here that
imports joblib or numpy.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time

from benchmarks import processes
from benchmarks.model import Figures, Setting
from benchmarks.peers import PEERS
from benchmarks.tasks import nothing

__all__ = ["main"]

_SETTLE = 0.5  # seconds; what starts in the background has started by then


def main(name: str, setting: Setting, tasks: int, born: float) -> Figures:
    """Open a peer, run four tasks, look at its memory, and run some more."""
    peer = PEERS[name]
    interpreter = time.time() - born
    began = time.perf_counter()
    importlib.import_module(peer.imports[0])
    own = time.perf_counter()
    for module in peer.imports[1:]:
        importlib.import_module(module)
    imported = time.perf_counter()
    with peer.open(setting) as stage:
        from joblib import Parallel, delayed  # noqa: PLC0415 - see above

        if Parallel(n_jobs=stage.n_jobs)(delayed(nothing)(i) for i in range(4)) != [0, 1, 2, 3]:
            raise AssertionError("the first results are wrong")
        figures = {
            "first_result_s": time.perf_counter() - imported,
            "import_s": own - began,
            "with_imports_s": interpreter + time.perf_counter() - began,
        }
        if tasks:
            time.sleep(_SETTLE)
            figures["nodes_mb"] = stage.meter.others_mb()
            with stage.timed() as lap:
                results = Parallel(n_jobs=stage.n_jobs)(delayed(nothing)(i) for i in range(tasks))
            right = results == list(range(tasks))
            del results
            if not right:
                raise AssertionError("the results of no-op tasks are wrong")
            gc.collect()
            figures["driver_mb"] = processes.rss_mb(os.getpid())
            figures["nodes_after_mb"] = stage.meter.others_mb()
            figures |= lap.costs(tasks)
    return figures


if __name__ == "__main__":
    processes.adopt()
    found = main(sys.argv[1], Setting(int(sys.argv[2]), int(sys.argv[3])), int(sys.argv[4]), float(sys.argv[5]))
    processes.kill(processes.descendants(os.getpid()))
    print(json.dumps(found))

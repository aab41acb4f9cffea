"""Counts work that does not depend on how busy the machine is, to be compared from commit to commit.

Instruction counters are not available here, and times are noise. So this counts, for a task that does nothing, how
often functions of skyward are called in the driver's threads, how often these call built-in functions, and the messages
and bytes on the wire. Tasks run one at a time; otherwise the machine's speed would decide how many share a message.
``counts.json`` has the normal counts for each minor version of Python (3.12 no longer calls a function for a
comprehension), and tests/test_benchmarks.py compares.

::

    python -m benchmarks.counts          # measure and print
    python -m benchmarks.counts --write  # and save it as the normal
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from joblib import Parallel, delayed

import skyward as sky
from benchmarks.tasks import nothing
from skyward.core.protocol.wire import Wire

__all__ = ["TOLERANCE", "main", "measure", "normal", "worse"]

TOLERANCE = 0.1
"""The share by which a count may grow without anybody being asked. On one machine they vary by less than 0.01; where
tasks take longer, more heartbeats fall among them."""

_FILE = Path(__file__).with_name("counts.json")
_OURS = str(Path(sky.__file__).parent)
_MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
_WARM, _TASKS = 100, 400

Counts = dict[str, float]


class _Profiler:
    """Counts events of all threads. A count that two threads add to at once may be lost; that is rare enough."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "c_call" and code.co_filename.startswith(_OURS):
            self.counts["built_in_calls"] += 1
        elif event == "call" and code.co_filename.startswith(_OURS):
            self.counts["calls"] += 1
            if code is Wire.send.__code__:
                self.counts["messages_sent"] += 1
            elif code is Wire.receive_data.__code__:
                self.counts["bytes_received"] += len(frame.f_locals["data"])
        elif event == "return" and code is Wire.data_to_send.__code__:
            self.counts["bytes_sent"] += sum(map(len, argument))
        elif event == "return" and code is Wire.receive_data.__code__:
            self.counts["messages_received"] += len(argument)


def measure() -> Counts:
    """Counts per task; in a process that has no pool yet, since threads are watched from their start."""
    profiler = _Profiler()
    threading.setprofile(profiler)
    try:
        with sky.Compute(nodes=1, concurrency=1, plugins=[sky.plugins.joblib()], console=False):
            sys.setprofile(profiler)
            _run(_WARM)
            before = profiler.counts.copy()
            _run(_TASKS)
            found = profiler.counts - before
            sys.setprofile(None)
    finally:
        threading.setprofile(None)
    return {name: round(count / _TASKS, 2) for name, count in sorted(found.items())}


def _run(count: int) -> None:
    """Tasks one after the other: each is submitted when the one before has come back."""
    results = Parallel(n_jobs=-1, batch_size=1, pre_dispatch=1)(delayed(nothing)(i) for i in range(count))
    if results != list(range(count)):
        raise AssertionError("the results of no-op tasks are wrong")


def normal() -> Counts | None:
    """What is normal for the running Python; None if that was never written down."""
    known: dict[str, Counts] = json.loads(_FILE.read_text(encoding="utf-8")) if _FILE.exists() else {}
    return known.get(_MINOR)


def worse(found: Counts, usual: Counts, tolerance: float = TOLERANCE) -> list[str]:
    """What has grown by more than the tolerance, and what is counted anew, in words."""
    return [
        f"{name}: {count:g} per task instead of {usual.get(name, 0):g}"
        for name, count in found.items()
        if count > usual.get(name, 0) * (1 + tolerance)
    ]


def main(arguments: list[str]) -> None:
    """Print the counts; with ``--write``, make them the normal."""
    found = measure()
    print(json.dumps(found))
    if "--write" in arguments:
        known = json.loads(_FILE.read_text(encoding="utf-8")) if _FILE.exists() else {}
        _FILE.write_text(json.dumps(known | {_MINOR: found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What listeners cost the driver: its processor time for no-op tasks sent one by one, with and without them, in turns.

::

    python -m benchmarks.listeners [--tasks 100000] [--rounds 10]

One pool serves all laps, which take turns: nobody listens; the product's own listeners do (what is counted for
`Compute.status`, and the console); and in addition one that gets every event and does nothing. Events are made in each
case. What runs on nodes is in other processes, and not in the figures.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

from joblib import Parallel, delayed

import skyward as sky
from benchmarks.tasks import nothing

__all__ = ["main", "measure"]


def measure(tasks: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of the driver's processor time per task, for each kind of lap; `tasks` in all for each."""
    share = tasks // rounds
    found: dict[str, list[float]] = {"nobody": [], "ours": [], "ours and one more": []}
    with sky.Compute(nodes=2, concurrency=2, plugins=[sky.plugins.joblib()], console=False) as pool:
        events = pool.events
        ours = events._listeners  # noqa: SLF001 - they can't be left out otherwise
        settings = {"nobody": (), "ours": ours, "ours and one more": (*ours, (lambda _: None, None))}
        _run(share)
        for number in range(rounds):
            for name in settings if number % 2 else reversed(settings):
                events._listeners, events._of = settings[name], {}  # noqa: SLF001 - as above
                gc.collect()
                before = time.process_time()
                _run(share)
                found[name].append((time.process_time() - before) / share * 1e6)
        events._listeners, events._of = ours, {}  # noqa: SLF001 - as above
    return found


def _run(count: int) -> None:
    if Parallel(n_jobs=-1, batch_size=1)(delayed(nothing)(i) for i in range(count)) != list(range(count)):
        raise AssertionError("the results of no-op tasks are wrong")


def main() -> None:
    """Print a row for each kind of lap."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    found = measure(options.tasks, options.rounds)
    print("| who listens | CPU µs per task (min to max) | more than with nobody, lap by lap |\n|---|---|---|")
    for name, laps in found.items():
        more = statistics.median((lap - alone) / alone for lap, alone in zip(laps, found["nobody"], strict=True))
        print(f"| {name} | {statistics.median(laps):.1f} ({min(laps):.1f} to {max(laps):.1f}) | {more:.1%} |")


if __name__ == "__main__":
    main()

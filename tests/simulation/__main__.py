"""``python -m tests.simulation``: many seeds, or the story of one."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from tests.simulation.run import Outcome, many, simulate, story_of
from tests.simulation.scenario import Scenario
from tests.simulation.shrink import reduced_story


def main() -> int:
    """Run what the command line asks for; the exit status is 1 if any seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="tell the story of one seed")
    parser.add_argument("--scenario", type=Path, help="tell the story of a scenario that a file describes")
    parser.add_argument("--shrink", action="store_true", help="leave out of it what it does not need to fail")
    parser.add_argument("--first", type=int, help="first of many seeds; drawn by chance unless given")
    parser.add_argument("--seeds", type=int, default=10_000, help="how many")
    parser.add_argument("--seconds", type=float, default=0.0, help="go on for so long instead")
    asked = parser.parse_args()
    if asked.scenario is not None:
        return _tell(simulate(Scenario.read(asked.scenario.read_text())), asked.shrink)
    if asked.seed is not None:
        return _tell(simulate(asked.seed), asked.shrink)
    first = asked.first if asked.first is not None else random.SystemRandom().randrange(10**9)
    return _many(first, asked.seeds, asked.seconds)


def _tell(outcome: Outcome, shrink: bool) -> int:
    print(reduced_story(outcome) if shrink and outcome.broken else story_of(outcome))
    return int(bool(outcome.broken))


def _many(first: int, seeds: int, seconds: float) -> int:
    print(f"seeds from {first} on")
    end, bad = time.monotonic() + seconds, 0
    while True:
        totals, failed = many(first, seeds if not seconds else 1_000)
        for outcome in failed:
            print(story_of(outcome))
        bad += len(failed)
        rate = f"{totals.turns:,} events, {totals.turns / totals.seconds:,.0f} a second"
        print(f"{totals.seeds:,} seeds from {first} on, {rate}; {len(failed)} failed")
        first += totals.seeds
        if time.monotonic() >= end:
            return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())

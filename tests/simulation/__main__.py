"""``python -m tests.simulation``: many seeds, or the story of one."""

from __future__ import annotations

import argparse
import random
import time

from tests.simulation.run import many, simulate, tell


def main() -> int:
    """Run what the command line asks for; the exit status is 1 if any seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="tell the story of one seed")
    parser.add_argument("--first", type=int, help="first of many seeds; drawn by chance unless given")
    parser.add_argument("--seeds", type=int, default=10_000, help="how many")
    parser.add_argument("--seconds", type=float, default=0.0, help="go on for so long instead")
    asked = parser.parse_args()
    if asked.seed is not None:
        outcome = simulate(asked.seed)
        tell(outcome)
        return int(bool(outcome.broken))
    first = asked.first if asked.first is not None else random.SystemRandom().randrange(10**9)
    print(f"seeds from {first} on")
    end, bad = time.monotonic() + asked.seconds, 0
    while True:
        totals, failed = many(first, asked.seeds if not asked.seconds else 1_000)
        for outcome in failed:
            tell(outcome)
        bad += len(failed)
        rate = f"{totals.turns:,} events, {totals.turns / totals.seconds:,.0f} a second"
        print(f"{totals.seeds:,} seeds from {first} on, {rate}; {len(failed)} failed")
        first += totals.seeds
        if time.monotonic() >= end:
            return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m tests.soak``: real pools under random load."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys

from tests.lab import Lab, missing
from tests.soak.rounds import Ground, play
from tests.wheels import wheels

_ARENA_MAX = -8  # of glibc's mallopt


def main() -> int:
    """Run it by hand; the exit status is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="when no further round is begun (default: 120)")
    parser.add_argument("--seed", type=int, default=None, help="a former run's, to choose the same again")
    parser.add_argument("--local", action="store_true", help="on this machine only; without it on hosts too (root)")
    parser.add_argument("--faults", action="store_true", help="only on hosts, to which something happens all the time")
    asked = parser.parse_args()
    seed = int.from_bytes(os.urandom(4), "big") if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)  # freed memory of one arena can be given back, so that the rest is in use
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def say(text: str) -> None:
        print(text, flush=True)

    reason = missing()
    if asked.local or (reason is not None and not asked.faults):
        report = play(asked.seconds, seed, say=say)
    elif reason is not None:
        parser.error(f"--faults needs hosts, but {reason}")
    else:
        with Lab() as lab:
            index = lab.serve_index(wheels.__wrapped__())  # type: ignore[attr-defined]
            ground = Ground(lab, index, lab.up(3, disk="300M"))
            report = play(asked.seconds, seed, ground=ground, always_faults=asked.faults, say=say)
    for text in report.wrong:
        print(text)
    return bool(report.wrong)


if __name__ == "__main__":
    sys.exit(main())

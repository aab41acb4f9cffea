"""``python -m tests.foreign``: all of the suites, beside those they were written for."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from tests.foreign.runner import Run, Suite, judge, run

__all__ = ["SUITES", "suite_of"]

SUITES = ("cpython", "loky", "joblib", "memory", "sklearn")


def suite_of(name: str) -> Suite | None:
    """None where its tests can't be had here."""
    found: Suite | None = importlib.import_module(f"tests.foreign.{name}_suite").suite()
    return found


def main() -> int:
    """The exit status is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.foreign", description=__doc__)
    parser.add_argument("suites", nargs="*", default=SUITES, choices=SUITES, help="which (default: all)")
    parser.add_argument("--part", action="store_true", help="only what is run each time")
    parser.add_argument("--alone", action="store_true", help="without those they were written for")
    asked = parser.parse_args()
    bad = 0
    for name in asked.suites:
        suite = suite_of(name)
        if suite is None:
            print(f"{name}: its tests can't be had here")
            continue
        ours = _play(name, suite, "skyward", whole=not asked.part)
        theirs = _play(name, suite, suite.peer, whole=not asked.part) if suite.peer and not asked.alone else None
        wrong = judge(ours, suite, theirs)
        print("\n".join(wrong), flush=True)
        bad += len(wrong)
    return int(bad > 0)


def _play(name: str, suite: Suite, backend: str, *, whole: bool) -> Run:
    with tempfile.TemporaryDirectory(prefix="foreign-") as folder:
        done = run(suite, backend, Path(folder), whole=whole, limit=7200)
    print(f"{time.strftime('%H:%M')} {name} on {backend}: {done}")
    for test, text in sorted(done.failed.items()):
        print(f"    failed: {test}: {text[:200]}")
    return done


if __name__ == "__main__":
    sys.exit(main())

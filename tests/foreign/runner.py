"""Runs other people's tests in a pytest of its own, and judges what failed."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.foreign.outcomes import name_of

__all__ = ["BUILD", "ROOT", "Run", "Suite", "cpu_seconds", "judge", "run", "select", "sha256"]

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "foreign"
"""Where what has to be downloaded lies; never committed."""


@dataclass(frozen=True)
class Suite:
    """Other people's tests.

    Parameters
    ----------
    plugin
        Module that points them at skyward; it also knows how to leave them with whom they were written for.
    tests
        What pytest is given to collect: files, folders, or modules after ``--pyargs``.
    fails
        Patterns of tests that fail on skyward and not on the peer, each with the reason. One that does not is wrong.
    part
        The tests that are run each time, as patterns; empty for all. The rest runs by `make foreign`.
    brief
        What pytest is given to collect for the part, where collecting all of it takes long.
    least
        How many tests of the part pass at least; fewer means that they were not found.
    left
        Patterns of tests that are never run, each with the reason.
    peer
        Name of the backend that the tests were written for, where its failures are to be compared with.
    path
        Folders that Python must find modules in.
    """

    plugin: str
    tests: Sequence[str]
    fails: Mapping[str, str]
    part: Sequence[str] = ()
    brief: Sequence[str] = ()
    least: int = 0
    left: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""
    path: Sequence[str] = ()


@dataclass
class Run:
    """What became of the tests: "passed", "failed", "skipped" or "xfailed", and the first line of the reason."""

    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    seconds: float = 0.0
    cpu: float = 0.0

    def __str__(self) -> str:
        counts = Counter(outcome for outcome, _ in self.outcomes.values())
        words = ", ".join(f"{number} {word}" for word, number in sorted(counts.items()))
        return f"{words} in {self.seconds:.0f} s, {self.cpu:.0f} s of a processor"

    @property
    def failed(self) -> dict[str, str]:
        """Names and reasons."""
        return {name: text for name, (outcome, text) in self.outcomes.items() if outcome == "failed"}


def run(suite: Suite, backend: str, folder: Path, *, whole: bool, limit: float, **variables: str) -> Run:
    """Run a suite on a backend, in a folder of its own, where no conftest of ours is found.

    Parameters
    ----------
    suite, backend
        What, and on what: "skyward", or the suite's peer.
    folder
        Empty; what the tests leave behind lies in it.
    whole
        All of it, or only the part for each time.
    limit
        Seconds after which it is an error that it has not ended.
    variables
        Of the environment, in addition.

    Raises
    ------
    AssertionError
        pytest itself failed.
    """
    said = folder / "outcomes"
    options = ["-p", "tests.foreign.outcomes", "-p", suite.plugin, "-p", "no:cacheprovider", "-c", os.devnull]
    options += ["--rootdir", str(folder), "--timeout=90", "-v", "-rfE", "--tb=short", "-W", "default", "--durations=10"]
    path = os.pathsep.join([*suite.path, str(ROOT)])
    part = "" if whole else "\n".join(suite.part)
    ours = {"PYTHONPATH": path, "FOREIGN_OUTCOMES": str(said), "FOREIGN_BACKEND": backend, "FOREIGN_PART": part}
    ours["FOREIGN_LEFT"] = "\n".join(suite.left)
    began, before = time.monotonic(), cpu_seconds()
    command = [sys.executable, "-m", "pytest", *options, *(suite.brief if suite.brief and not whole else suite.tests)]
    with (folder / "output").open("w+", errors="replace") as output:
        try:
            code = subprocess.run(
                command, cwd=folder, env=os.environ | ours | variables,
                stdout=output, stderr=subprocess.STDOUT, timeout=limit, check=False,
            ).returncode  # fmt: skip
        finally:
            output.seek(0)
            print(output.read()[-12000:])
    assert code in {0, 1}, f"pytest ended with {code}; its words are above"
    rows = [json.loads(line) for line in said.read_text().splitlines()]
    outcomes = {name: (outcome, text) for name, outcome, text in rows}
    return Run(outcomes, time.monotonic() - began, cpu_seconds() - before)


def judge(ours: Run, suite: Suite, theirs: Run | None = None) -> list[str]:
    """Say what is wrong: a failure without a reason, or a reason without a failure."""
    passed = sum(outcome == "passed" for outcome, _ in ours.outcomes.values())
    wrong = [f"only {passed} tests passed, of {suite.least} at least"] if passed < suite.least else []
    excused = {_neutral(name) for name in theirs.failed} if theirs is not None else set()
    for name, text in ours.failed.items():
        if _neutral(name) not in excused and not any(_fits(name, pattern) for pattern in suite.fails):
            wrong.append(f"{name} fails, and there is no reason for it: {text}")
    for pattern, reason in suite.fails.items():
        ran = [name for name, (outcome, _) in ours.outcomes.items() if _fits(name, pattern) and outcome != "skipped"]
        if ran and not any(name in ours.failed for name in ran):
            wrong.append(f"{pattern} passes now, so it can't be that: {reason}")
    return wrong


def select(config: pytest.Config, items: list[pytest.Item], wanted: Callable[[pytest.Item], bool]) -> None:
    """Keep the tests that are about skyward and in the part that is to run; for plugins."""
    part, left = (os.environ.get(name, "").split("\n") for name in ("FOREIGN_PART", "FOREIGN_LEFT"))
    kept, rest = [], []
    for item in items:
        name = name_of(item)
        chosen = part == [""] or any(_fits(name, pattern) for pattern in part)
        keeps = wanted(item) and chosen and not any(_fits(name, pattern) for pattern in left)
        (kept if keeps else rest).append(item)
    config.hook.pytest_deselected(items=rest)
    items[:] = kept


def _neutral(name: str) -> str:
    """A test's name, whichever backend its parameters name."""
    return name.replace("loky", "skyward")


def _fits(name: str, pattern: str) -> bool:
    """As fnmatch does, except that brackets are the tests' own."""
    return fnmatch.fnmatchcase(name, re.sub(r"\[", "[[]", pattern))


def cpu_seconds() -> float:
    """What the processes that this one has waited for have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

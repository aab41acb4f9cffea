"""What a user's type checker knows: it accepts right programs and finds each mistake in wrong ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = ("tests/typed/right.py", "tests/typed/wrong.py")


def found_by(*command: str) -> tuple[set[tuple[str, int]], str]:
    """Program and line of each error that a checker reports, and its whole output."""
    ran = subprocess.run(
        [sys.executable, "-m", *command, *PROGRAMS], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert not ran.stderr
    lines = re.findall(r"(tests/typed/\w+\.py):(\d+):(?:\d+ -)? error", ran.stdout)
    return {(program, int(line)) for program, line in lines}, ran.stdout


def marked() -> set[tuple[str, int]]:
    return {
        (program, number)
        for program in PROGRAMS
        for number, line in enumerate((REPOSITORY / program).read_text().splitlines(), 1)
        if line.endswith("  # wrong")
    }


@pytest.mark.slow
def test_mypy_knows_the_results_and_finds_wrong_arguments(pytestconfig: pytest.Config) -> None:
    """Of submit, map, gather, the decorator and its operators, futures and pools; and no other line errs."""
    cache = pytestconfig.cache
    assert cache is not None
    assert len(marked()) > 30
    options = ("--strict", "--config-file=", "--no-error-summary", f"--cache-dir={cache.mkdir('typed')}")
    found, output = found_by("mypy", *options)
    assert found == marked(), output


@pytest.mark.slow
def test_pyright_agrees() -> None:
    """Where it is installed: with its Node.js it takes 280 MB, so `make` does not install it."""
    pytest.importorskip("basedpyright", reason="to run this: pip install basedpyright")
    found, output = found_by("basedpyright", "--level", "error", "--pythonpath", sys.executable)
    assert found == marked(), output

"""What a user's type checker knows: mypy --strict accepts right programs and finds each mistake in wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = ("tests/typed/right.py", "tests/typed/wrong.py")


@pytest.mark.slow
def test_mypy_knows_the_results_and_finds_wrong_arguments(pytestconfig: pytest.Config) -> None:
    """Of submit, map, gather, the decorator and its operators, futures and pools; and no other line errs."""
    cache = pytestconfig.cache
    assert cache is not None
    command = [
        "mypy",
        "--strict",
        "--config-file=",
        "--no-error-summary",
        f"--cache-dir={cache.mkdir('typed')}",
        *PROGRAMS,
    ]
    ran = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert not ran.stderr
    found = {tuple(line.split(":")[:2]) for line in ran.stdout.splitlines() if ": error: " in line}
    wrong = {
        (program, str(number))
        for program in PROGRAMS
        for number, line in enumerate((REPOSITORY / program).read_text().splitlines(), 1)
        if line.endswith("  # wrong")
    }
    assert len(wrong) > 30
    assert found == wrong, ran.stdout

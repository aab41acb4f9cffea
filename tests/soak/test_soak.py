"""Random load on real pools: some seconds on this machine, and some on hosts that die, freeze and lose their lines.

New choices each time; the seed is printed, and `python -m tests.soak --seed` makes the same again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.remote import wheels

__all__ = ["wheels"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a round's own limits come first


def soak(folder: Path, *options: str) -> int:
    """In a process of its own, which interrupts itself and looks at all that it has open."""
    command = [sys.executable, "-m", "tests.soak", *options]
    with (folder / "said").open("w+") as said:
        try:
            kind = subprocess.STDOUT
            return subprocess.run(command, cwd=ROOT, stdout=said, stderr=kind, timeout=580, check=False).returncode
        finally:
            said.seek(0)
            print(said.read())


def test_ten_seconds_on_this_machine(tmp_path: Path) -> None:
    assert soak(tmp_path, "--local", "--seconds", "10") == 0


@pytest.mark.lab
def test_whatever_happens_to_hosts(tmp_path: Path, lab: object, wheels: Path) -> None:
    assert soak(tmp_path, "--faults", "--seconds", "45") == 0

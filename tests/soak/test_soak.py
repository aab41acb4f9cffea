"""Random load on real pools: some seconds on this machine, and some on hosts that die, freeze and lose their lines.

New choices each time; the seed is printed, and `python -m tests.soak --seed` makes the same again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import Lab
from tests.remote import index, wheels
from tests.soak.rounds import Ground, play

__all__ = ["index", "wheels"]  # fixtures

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a round's own limits come first
def test_ten_seconds_on_this_machine(tmp_path: Path) -> None:
    """In a process of its own, which interrupts itself and looks at all that it has open."""
    command = [sys.executable, "-m", "tests.soak", "--local", "--seconds", "10"]
    with (tmp_path / "said").open("w+") as said:
        code = subprocess.run(
            command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, timeout=580, check=False
        ).returncode  # fmt: skip
        said.seek(0)
        print(said.read())
    assert code == 0


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_task_settles_right_whatever_happens(lab: Lab, index: str) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    ground = Ground(lab, index, lab.up(3, disk="300M"))
    try:
        report = play(45.0, seed, ground=ground, always_faults=True, say=print)
    finally:
        for host in ground.hosts:
            lab.remove(host)
    assert report.wrong == [], str(report)

"""Losses of power while a program with a resume file runs: what it has handed over is on the disk.

The program runs on a file system in a file. What the device has at a moment, copied, is what a machine would find after
a loss of power: all that the kernel has only in memory is missing.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import eventually
from tests.worker.helpers import ROOT

pytestmark = [pytest.mark.lab, pytest.mark.slow]

TURNS = 30 if "SKYWARD_KILLS" in os.environ else 1
CALLS = 120
CAN = shutil.which("mkfs.ext4") is not None and Path("/dev/loop-control").exists()

PROGRAM = """
import os, sys
import skyward as sky

def work(n):
    return n, os.urandom(8).hex(), os.urandom(200_000) if n % 10 == 0 else b""

with sky.Compute(concurrency=2, resume="search.run", console=False) as pool:
    for n, drawn, data in pool.map(work, range(int(sys.argv[1]))):
        os.write(1, f"{n} {drawn} {len(data)}\\n".encode())
"""


def command(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    command("mount", "-o", "loop", str(image), str(place))
    try:
        yield place
    finally:
        eventually(lambda: subprocess.run(["umount", place], check=False).returncode == 0, 30, "it is unmounted")


def start(folder: Path, count: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "program.py", str(count)]
    return subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, env=environment)


@pytest.mark.skipif(not CAN, reason="there are no loop devices, or no mkfs.ext4")
def test_what_was_handed_over_is_there_after_a_loss_of_power(tmp_path: Path) -> None:
    chance = random.Random(7)
    for turn in range(TURNS):
        image, copy = tmp_path / f"image-{turn}", tmp_path / f"copy-{turn}"
        with image.open("wb") as file:
            file.truncate(128 << 20)
        command("mkfs.ext4", "-q", "-F", str(image))
        with mounted(image, tmp_path / "before") as folder:
            (folder / "program.py").write_text(PROGRAM)
            os.sync()
            with start(folder, CALLS) as process:
                assert process.stdout is not None
                handed = [process.stdout.readline() for _ in range(chance.randrange(20, CALLS // 2))]
                (folder / "unsynced").write_bytes(bytes(10_000))
                shutil.copyfile(image, copy)
                process.kill()
        image.unlink()
        with mounted(copy, tmp_path / "after") as folder:
            unsynced = folder / "unsynced"
            assert not (unsynced.exists() and unsynced.stat().st_size), "this test would show nothing"
            with start(folder, len(handed)) as process:
                assert process.stdout is not None
                assert process.stdout.read().splitlines(keepends=True) == handed
        copy.unlink()

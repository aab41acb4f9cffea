"""Losses of power while a program with a resume file runs: what it has handed over is on the disk.

Once with a real file system, in a file. What that device has at a moment, copied, is what a machine would find after a
loss of power: all that the kernel has only in memory is missing. And once with all that a disk may have made of what
the program asked the kernel for, however it orders, cuts and loses what no sync has covered; see `disk_states`.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from skyward.core.resume.store import ResultStore, connect
from tests.disk_states import STRACE, Recording, choices, record
from tests.lab import eventually
from tests.worker.helpers import ROOT

pytestmark = pytest.mark.slow

MANY = "SKYWARD_KILLS" in os.environ
TURNS = 30 if MANY else 1
STATES, PROGRAMS, RESULTS = (3000, 40, 70) if MANY else (30, 1, 36)
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


@pytest.mark.lab
@pytest.mark.timeout(900 if MANY else 240)
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


# --- what a disk may have made of it ---

KILLED = """
import os, signal, sys
import skyward as sky

def work(n):
    size = 150_000 if n % 10 == 0 else 90_000 if n % 2 else 10  # files of their own, and enough for checkpoints
    return n, os.urandom(8).hex(), os.urandom(size)

count, last = map(int, sys.argv[1:])
with sky.Compute(concurrency=2, resume="search.run", console=False) as pool:
    for n, drawn, data in pool.map(work, range(count)):
        os.write(1, f"{n} {drawn} {len(data)}\\n".encode())
        if n == last:
            os.kill(os.getpid(), signal.SIGKILL)
"""
LINE = re.compile(rb"(\d+) ([0-9a-f]{16}) (\d+)\n")


class Handed:
    """What the recorded runs of a program have handed over."""

    def __init__(self, recording: Recording) -> None:
        self.results: dict[int, bytes] = {}
        self._lines: dict[int, int] = {}
        self._end = 0  # after this line, results are removed that the latest run has not used
        self._latest: set[int] = set()
        for moment, text in recording.printed:
            if (found := LINE.fullmatch(text)) is not None:
                n = int(found[1])
                assert self.results.setdefault(n, text) == text, "it was handed over twice, and differs"
                self._lines.setdefault(n, moment)
                self._latest = {n} if n == 0 else {*self._latest, n}
                self._end = moment

    def before(self, moment: int) -> set[int]:
        """What had been handed over by then, and is not meant to be removed."""
        return self._latest if moment > self._end else {n for n, line in self._lines.items() if line <= moment}


def stored(file: Path) -> dict[int, bytes]:
    """All that a new run finds in a resume file; none of it is damaged."""
    found: dict[int, bytes] = {}
    store = ResultStore(str(file))
    try:
        with closing(connect(str(file))) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            keys = [key for (key,) in db.execute("SELECT key FROM results")]
        for key in keys:
            got: Any = store.get(key)
            assert got is not None
            n, drawn, data = pickle.loads(got[0][0], buffers=got[0][1:])
            assert n not in found
            found[n] = b"%d %s %d\n" % (n, drawn.encode(), len(data))
    finally:
        store.close()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.timeout(900 if MANY else 240)
@pytest.mark.skipif(STRACE is None, reason="there is no strace")
def test_whatever_a_disk_had_made_of_it_a_new_run_has_what_was_handed_over(tmp_path: Path) -> None:
    """At random moments of a run that is killed, of the one that goes on with its file, and of removing results."""
    place, state, chance = tmp_path / "place", tmp_path / "state", random.Random(7)
    place.mkdir()
    (tmp_path / "program.py").write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = f"{sys.executable} ../program.py"
    runs = [f"{program} {RESULTS} {RESULTS // 2}", f"{program} {RESULTS} -1"]
    if MANY:
        runs += [f"{program} 25 -1", f"{sys.executable} -m skyward.cli runs search.run --prune --yes"]
    recording = record(["sh", "-c", "; ".join(runs)], place, tmp_path / "log", environment)
    handed = Handed(recording)
    assert sorted(handed.results) == list(range(RESULTS))
    recording.lay_out(state, recording.moments[-1], lambda _: True)
    assert contents(state) == contents(place), "the recording is not complete"
    ways = choices(chance)
    for number in range(STATES):
        moment = chance.choice(chance.choice((recording.moments, recording.barriers)))
        way = chance.choice(sorted(ways))
        recording.lay_out(state, moment, ways[way])
        before = handed.before(moment)
        if number < PROGRAMS:
            done = subprocess.run(
                [sys.executable, tmp_path / "program.py", str(len(before)), "-1"],
                cwd=state, env=environment, stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
            lines = done.stdout.splitlines(keepends=True)
            assert lines == [handed.results[n] for n in range(len(before))], (moment, way)
        found = stored(state / "search.run")
        assert before <= found.keys(), (moment, way)
        assert all(handed.results.get(n, line) == line for n, line in found.items()), (moment, way)

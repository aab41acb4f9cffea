"""Folders of processes that have died are removed by the next one; those of living processes are not, however young."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skyward.worker import scratch
from tests.worker.helpers import ROOT

HOLD = """
import sys, time
from skyward.worker import scratch
print(scratch.make(sys.argv[1], "agent")[0], flush=True)
time.sleep(600)
"""


def test_a_folder_lasts_as_long_as_its_process(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        theirs = Path(process.stdout.readline().strip())
        assert stat.S_IMODE(theirs.stat().st_mode) == 0o700
        ours, lock = scratch.make(str(tmp_path), "agent")
        assert set(tmp_path.iterdir()) == {theirs, Path(ours)}
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    (theirs / "large").write_bytes(b"x")
    scratch.sweep(str(tmp_path), "store")
    assert theirs.exists(), "those of another kind are left alone"
    scratch.sweep(str(tmp_path), "agent")
    assert set(tmp_path.iterdir()) == {Path(ours)}
    os.close(lock)


def test_one_without_a_lock_is_being_made_unless_it_is_old(tmp_path: Path) -> None:
    young, old = (tmp_path / f"skyward-agent-{os.getuid()}-{name}" for name in ("young", "old"))
    young.mkdir()
    old.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    scratch.sweep(str(tmp_path), "agent")
    assert set(tmp_path.iterdir()) == {young}


def test_one_that_is_swept_while_it_is_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may sweep after the lock file was made and before it is locked."""
    flock, came = scratch.fcntl.flock, []

    def late(fd: int, how: int) -> None:
        if not came:
            came.append(fd)
            scratch.sweep(str(tmp_path), "agent")
        flock(fd, how)

    monkeypatch.setattr(scratch.fcntl, "flock", late)
    folder, lock = scratch.make(str(tmp_path), "agent")
    assert len(came) == 1
    assert (Path(folder) / "lock").exists()
    assert list(tmp_path.iterdir()) == [Path(folder)]
    os.close(lock)

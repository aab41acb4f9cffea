"""Whatever is killed, and whenever: no program outlives its guard, and no guard its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skyward.worker import rclone_guard
from tests.processes import alive, descendants
from tests.worker.helpers import ROOT, wait_for

pytestmark = pytest.mark.slow

GUARD = "from skyward.worker.rclone_guard import main; main()"
# The guard is killed while its child has not begun to run the program.
KILLED_EARLY = f"""
import os, signal, time
fork, guard = os.fork, os.getpid()
def fork_and_die():
    if pid := fork():
        return pid
    os.kill(guard, signal.SIGKILL)
    while os.getppid() == guard:
        time.sleep(0.001)
    return 0
os.fork = fork_and_die
{GUARD}
"""
SLEEPS = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(1000)"


@contextmanager
def guarded(place: Path, code: str = GUARD, program: str = SLEEPS) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", code, str(place), sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guard:
        yield guard


def begun(guard: subprocess.Popen[bytes]) -> int:
    """Wait until the program runs; returns its pid."""
    assert guard.stdout is not None
    return int(guard.stdout.readline())


def test_the_program_ends_with_its_owner(tmp_path: Path) -> None:
    with guarded(tmp_path) as guard:
        program = begun(guard)
        assert guard.stdin is not None
        guard.stdin.close()  # as the kernel does if the owner was killed
        assert guard.wait(20) == 0
        assert not alive(program)


def test_a_program_that_hangs_is_killed(tmp_path: Path) -> None:
    with guarded(tmp_path) as guard:
        program = begun(guard)
        os.kill(program, signal.SIGSTOP)
        assert guard.stdin is not None
        guard.stdin.close()
        assert guard.wait(rclone_guard.PATIENCE + 20) == 0
        wait_for(lambda: not alive(program), "it has ended")


def test_the_program_ends_with_its_guard(tmp_path: Path) -> None:
    with guarded(tmp_path) as guard:
        program = begun(guard)
        guard.kill()
        wait_for(lambda: not alive(program), "it has ended")


def test_a_guard_that_dies_before_the_program_begins(tmp_path: Path) -> None:
    """Nothing begins then; the output ends as soon as nobody holds it."""
    with guarded(tmp_path, KILLED_EARLY) as guard:
        assert guard.stdout is not None
        assert guard.stdout.read() == b""
        assert guard.wait(20) == -signal.SIGKILL


def test_a_program_that_ends_by_itself_does_not_end_its_guard(tmp_path: Path) -> None:
    """It has yet to unmount."""
    with guarded(tmp_path, program="print(1, flush=True)") as guard:
        begun(guard)
        wait_for(lambda: not [pid for pid in descendants(guard.pid) if alive(pid)], "the program has ended")
        assert guard.poll() is None
        assert guard.stdin is not None
        guard.stdin.close()
        assert guard.wait(20) == 0

"""One pool at a time, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skyward.core.errors import ResumeFileError
from skyward.core.resume.file_lock import FileLock
from tests.core.resume import names

HOLD = """
import os, sys
from skyward.core.resume.file_lock import FileLock
lock = FileLock(sys.argv[1])
forked, told = os.pipe()
if len(sys.argv) > 2 and os.fork() == 0:
    os.write(told, b"1")  # it has let go of the lock
    os.close(1)
    sys.stdin.read()
    os._exit(0)
if len(sys.argv) > 2:
    os.read(forked, 1)
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path, *more: str) -> subprocess.Popen[str]:
    made = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "held\n"
    return made


def test_a_second_pool_of_the_program_is_refused(tmp_path: Path) -> None:
    """By any name of the file."""
    file = tmp_path / "x.run"
    file.touch()
    (tmp_path / "link").symlink_to(file)
    lock = FileLock(str(file))
    for name in ("x.run", "link"):
        with pytest.raises(ResumeFileError, match="is in use by another pool of this program"):
            FileLock(str(tmp_path / name))
    lock.release()
    lock.release()
    FileLock(str(tmp_path / "link")).release()
    assert names(tmp_path) == ["link", "x.run"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["with a fork"]], ids=["alone", "its fork lives on"])
def test_another_program_is_named_and_its_death_frees_the_file(tmp_path: Path, more: list[str]) -> None:
    file = tmp_path / "x.run"
    process = holder(file, *more)
    with process:
        with pytest.raises(ResumeFileError, match=rf"is in use by \S+ process {process.pid}; wait"):
            FileLock(str(file))
        process.send_signal(signal.SIGKILL)
        process.wait()
        lock = FileLock(str(file))
        with pytest.raises(ResumeFileError):
            FileLock(str(file))
        lock.release()


def test_a_fork_does_not_release_it(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "x.run"))
    pid = os.fork()
    if not pid:
        lock.release()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert Path(lock.path).exists()
    lock.release()


def test_a_folder_that_cant_be_written_to_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        FileLock(str(tmp_path / "nowhere" / "x.run"))


@pytest.mark.slow
def test_a_copy_of_the_folder_frees_nothing(tmp_path: Path) -> None:
    """Whoever reads all files there in the program that holds the lock, such as a backup, closes them again."""
    file = tmp_path / "x.run"
    lock = FileLock(str(file))
    Path(lock.path).read_bytes()
    script = "import sys; from skyward.core.resume.file_lock import FileLock; FileLock(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=False)
    assert "is in use by" in done.stderr
    lock.release()
    assert subprocess.run([sys.executable, "-c", script, str(file)], check=False).returncode == 0

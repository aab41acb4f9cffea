"""Who has a file open for writing."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from skyward.worker.writers import Writer, find_writers, has_writers

ME = os.getpgid(0)


def found(path: Path) -> list[Writer]:
    status = path.stat()
    identity = status.st_dev, status.st_ino
    return find_writers({identity}).get(identity, [])


def test_readers_are_no_writers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    with path.open("rb"):
        assert has_writers(str(path)) is False
        assert found(path) == []


@pytest.mark.parametrize(("mode", "is_new"), [("wb", True), ("ab", False), ("r+b", False)])
def test_how_a_file_is_open_is_known(tmp_path: Path, mode: str, is_new: bool) -> None:
    path = tmp_path / "file"
    path.touch()
    with path.open(mode):
        assert has_writers(str(path)) is True
        assert found(path) == [Writer(ME, is_new)]
    assert has_writers(str(path)) is False


def test_a_mapping_counts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1" * 4096)
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4096)
    assert has_writers(str(path)) is True
    mapped.close()
    assert has_writers(str(path)) is False


def test_the_group_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    program = "import sys; file = open(sys.argv[1], 'w'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert found(path) == [Writer(process.pid, True)]
        process.stdin.close()


def test_a_lease_that_is_broken_does_no_harm(tmp_path: Path) -> None:
    """Files that are opened for writing while one looks: the signal that this may cause does nothing."""
    path = tmp_path / "file"
    path.touch()
    program = "import sys\nfor _ in range(2000): open(sys.argv[1], 'a').close()"
    with subprocess.Popen([sys.executable, "-S", "-c", program, str(path)]) as process:
        while process.poll() is None:
            has_writers(str(path))
    assert process.returncode == 0

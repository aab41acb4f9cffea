"""Files of large results are whole or not there."""

from __future__ import annotations

import errno
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from skyward.core.resume.large_files import LargeFiles
from tests.core.resume import names

KEY, OTHER = b"k" * 16, b"o" * 16


def test_they_come_back(tmp_path: Path) -> None:
    files = LargeFiles(str(tmp_path / "x.run"))
    files.write(KEY, [b"abc", memoryview(np.arange(3, dtype="u1")), bytearray(b"")])
    files.sync()
    assert files.read(KEY) == b"abc\0\1\2"
    folder = tmp_path / "x.run-files"
    assert (folder.stat().st_mode & 0o777, (folder / KEY.hex()).stat().st_mode & 0o777) == (0o700, 0o600)
    files.write(KEY, [b"new"])
    assert files.read(KEY) == b"new"


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LargeFiles(str(tmp_path / "x.run")).read(KEY)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files acts as one."""
    files = LargeFiles(str(tmp_path / "x.run"))
    files.write(KEY, [b"old"])
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match="File too large") as caught:
            files.write(KEY, [bytes(60_000), bytes(60_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.errno == errno.EFBIG
    assert names(files.folder) == [KEY.hex()]
    assert files.read(KEY) == b"old"


def test_a_sweep_removes_what_has_no_row(tmp_path: Path) -> None:
    """And nothing that is not ours."""
    files = LargeFiles(str(tmp_path / "x.run"))
    assert files.sweep([]) == 0
    files.write(KEY, [b"1"])
    files.write(OTHER, [b"2"])
    (tmp_path / "x.run-files" / f"{OTHER.hex()}.part").touch()
    (tmp_path / "x.run-files" / "notes.txt").touch()
    assert files.sweep([KEY]) == 2
    assert names(files.folder) == sorted([KEY.hex(), "notes.txt"])
    files.remove([KEY, OTHER])
    (tmp_path / "x.run-files" / "notes.txt").unlink()
    assert files.sweep([]) == 0
    assert not (tmp_path / "x.run-files").exists()

"""What one process writes, another maps, as it was."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skyward.core.payload.shared_file import CAN_SHARE, SharedFile, map_file, open_shared, remove, take_file

linux = pytest.mark.skipif(not CAN_SHARE, reason="no files in memory here")


@linux
def test_another_process_reads_it_and_nobody_writes_it() -> None:
    file = SharedFile(memoryview(b"content"))
    assert (len(file), bytes(file.map())) == (7, b"content")
    code = (
        "import os, sys; from skyward.core.payload.shared_file import open_shared\n"
        "print(os.read(open_shared(sys.argv[1], int(sys.argv[2]), 7), 99).decode())\n"
        "try: os.write(os.open(sys.argv[1], os.O_RDWR), b'x')\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file.path, str(file.inode)], check=False, capture_output=True, text=True
    )
    assert done.stdout.split() == ["content", str(errno.EPERM)], done.stderr


@linux
def test_one_that_is_gone_is_not_mistaken_for_another() -> None:
    file = SharedFile(memoryview(b"content"))
    path, inode = file.path, file.inode
    del file
    with pytest.raises(FileNotFoundError):
        open_shared(path, inode, 7)
    others = [SharedFile(memoryview(b"another"))]
    while others[-1].path != path:  # until its number is used again
        others.append(SharedFile(memoryview(b"another")))
    with pytest.raises(FileNotFoundError, match="another file"):
        open_shared(path, inode, 7)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@linux
def test_it_leaves_no_open_file() -> None:
    before = _open_files()
    file = SharedFile(memoryview(b"content"))
    file.map()
    del file
    assert _open_files() == before


def _maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_a_map_takes_no_descriptor_and_ends_with_its_last_view(tmp_path: Path) -> None:
    path, size = tmp_path / "result", 3 * mmap.PAGESIZE + 5
    path.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    gc.collect()
    files, maps = _open_files(), _maps()
    with path.open("rb", buffering=0) as file:
        arrays = [np.frombuffer(map_file(file.fileno(), size), np.uint8)[1:] for _ in range(500)]
    assert _open_files() == files
    assert maps + 500 <= _maps() < maps + 600
    arrays[0][0] = 77
    assert (arrays[0][0], arrays[1][0]) == (77, 1), "each has its own copy of what is written"
    assert path.read_bytes()[1] == 1
    del arrays
    assert _maps() < maps + 50


@pytest.mark.parametrize("has_ctypes", [True, False])
def test_what_can_not_be_mapped_is_an_error(has_ctypes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_ctypes:  # as in a Python that was built without libffi
        monkeypatch.setattr("skyward.core.payload.shared_file._CTYPES", None)
    read, write = os.pipe()
    with os.fdopen(read), os.fdopen(write, "w"), pytest.raises(OSError, match=r"[Dd]evice"):
        map_file(read, mmap.PAGESIZE)


def result(parent: Path) -> Path:
    """A file as a slot leaves it."""
    folder = parent / f"skyward-store-{os.getuid()}-abc"
    folder.mkdir()
    path = folder / "result-1-0"
    path.write_bytes(b"content")
    return path


def test_nothing_but_results_is_taken_or_removed(tmp_path: Path) -> None:
    """A node that named another file would have it removed."""
    mine = result(tmp_path)
    other = tmp_path / "document"
    other.write_text("precious")
    inside = mine.parent / "lock"
    inside.touch()
    linked = tmp_path / f"skyward-store-{os.getuid()}-link"
    linked.symlink_to(mine.parent)
    (mine.parent / "result-1-1").symlink_to(other)
    wrong = [
        str(other),
        str(inside),
        f"{linked}/result-1-0",
        f"{mine.parent}/../document",
        "",
        "result-1-0",
        "/etc/hosts",
    ]
    wrong += [
        f"{mine.parent}/./result-1-0",
        f"{tmp_path}/result-1-0",
        f"{mine}\n",
        f"{mine}\0",
        f"{mine.parent}/result-1-1",
    ]
    for path in wrong:
        with pytest.raises((OSError, ValueError)):
            take_file(path)
        remove([os.fsencode(path)])
    assert (other.read_text(), mine.read_bytes(), inside.exists()) == ("precious", b"content", True)
    remove([os.fsencode(mine)])
    assert not mine.exists()


@pytest.mark.parametrize("has_ctypes", [True, False])
def test_a_file_that_is_taken_is_removed_and_may_be_written(
    has_ctypes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_ctypes:
        monkeypatch.setattr("skyward.core.payload.shared_file._CTYPES", None)
    path = result(tmp_path)
    data = take_file(str(path))
    data[0] = ord("C")
    assert bytes(data) == b"Content"
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        take_file(str(path))

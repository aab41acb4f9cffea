"""Large results lie in files, unless there is no room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skyward.core.payload.pickling import LARGE
from skyward.core.payload.shared_file import remove
from skyward.worker.result_files import ResultFiles, UnclaimedFiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder as an agent does: nothing is removed in any other."""
    made = tmp_path / f"skyward-store-{os.getuid()}-abc"
    made.mkdir()
    return made


def test_large_ones_become_files_and_small_ones_do_not(folder: Path) -> None:
    results_folder = ResultFiles(str(folder))
    small, large, other = memoryview(b"s"), memoryview(bytes(LARGE)), memoryview(b"x" * LARGE)
    files, rest = results_folder.put([large, small, other], LARGE)
    assert rest == [small]
    assert [Path(os.fsdecode(files[index])).read_bytes() for index in (0, 2)] == [large, other]
    assert all(Path(os.fsdecode(path)).stat().st_mode & 0o777 == 0o600 for path in files.values())
    remove(files.values())
    remove(files.values())
    assert not list(folder.iterdir())


def test_without_room_they_are_sent(folder: Path) -> None:
    large = memoryview(bytes(LARGE))
    assert ResultFiles(str(folder), margin=1 << 60).put([large], LARGE) == ({}, [large])
    assert not list(folder.iterdir())
    assert ResultFiles(str(folder / "missing")).put([large], LARGE) == ({}, [large])


def test_the_agent_removes_what_a_dead_slot_left_and_no_message_named(folder: Path) -> None:
    results = UnclaimedFiles(str(folder))
    names = ["result-7-0", "result-7-1", "result-7-2", "result-70-0", "lock"]
    paths = [folder / name for name in names]
    for path in paths:
        path.write_bytes(b"x")
    results.sent(4, [os.fsencode(paths[0])])
    results.sent(9, [os.fsencode(paths[1])])
    results.acknowledge(3)
    results.clear(7)
    assert {path.name for path in folder.iterdir()} == set(names) - {"result-7-2"}
    results.acknowledge(4)
    results.clear(7)
    assert {path.name for path in folder.iterdir()} == set(names) - {"result-7-2", "result-7-0"}
    results.acknowledge(9)
    results.clear(7)
    assert {path.name for path in folder.iterdir()} == {"result-70-0", "lock"}


def test_without_a_folder_nothing_is_removed() -> None:
    UnclaimedFiles(None).clear(7)

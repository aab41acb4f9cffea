"""What was written in a folder is found, whoever writes it, and however."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from skyward.worker.unsaved_files import Changed, UnsavedFiles

ME = frozenset({os.getpgid(0)})
OTHERS = frozenset({1})


class Folder:
    def __init__(self, base: Path) -> None:
        self.path = base / "data"
        self.copies = base / "copies"
        for each in (self.path, self.copies):
            each.mkdir()
        (self.path / "first").write_text("1")
        self.files = UnsavedFiles(str(self.path), str(self.copies))

    def save(self, groups: frozenset[int] | None = OTHERS) -> dict[str, bytes]:
        """Save what has changed; returns it."""
        found, problems = self.files.find(groups)
        assert problems == []
        content = {file.name: Path(file.path).read_bytes() for file in found}
        for file in found:
            self.files.saved(file)
        return content


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_what_was_there_counts_as_saved_and_changes_are_found_once(folder: Folder) -> None:
    assert folder.save() == {}
    (folder.path / "deep").mkdir()
    (folder.path / "deep" / "new").write_text("2")
    (folder.path / "first").write_text("3")
    assert folder.save() == {"deep/new": b"2", "first": b"3"}
    assert folder.save() == {}
    (folder.path / "first").unlink()
    assert folder.save() == {}
    (folder.path / "first").write_text("3")
    assert folder.save() == {"first": b"3"}


def test_a_change_that_hides_itself_is_found(folder: Folder) -> None:
    """The same size and the same time of change, right after the last look."""
    path = folder.path / "first"
    for content in ("a", "b", "c", "d"):
        path.write_text(content)
        os.utime(path, (1, 1))
        assert folder.save() == {"first": content.encode()}


def test_a_file_that_others_begin_waits_for_them(folder: Folder) -> None:
    with (folder.path / "new").open("w") as file:
        file.write("half")
        file.flush()
        assert folder.save() == {}
        assert folder.save(ME) == {"new": b"half"}  # it may be of the task that has ended
        assert folder.save(ME) == {}
        file.write(" and whole")
        file.flush()
        assert folder.save(None) == {"new": b"half and whole"}
    assert folder.save() == {"new": b"half and whole"}
    assert folder.save() == {}
    assert os.listdir(folder.copies) == []  # noqa: PTH208


def test_a_file_to_which_others_append_does_not(folder: Folder) -> None:
    """What was in it before may be of the task that has ended."""
    with (folder.path / "log").open("a") as file:
        file.write("line\n")
        file.flush()
        assert folder.save() == {"log": b"line\n"}


def test_writing_by_a_mapping_changes_no_times_and_is_found(folder: Folder) -> None:
    path = folder.path / "array"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        mapped[0] = 1
        assert folder.save(ME)["array"][0] == 1
        mapped[0] = 2
        assert folder.save(ME)["array"][0] == 2
        mapped[0] = 3
    assert folder.save()["array"][0] == 3


def test_a_file_that_changes_while_it_is_saved_is_copied(folder: Folder) -> None:
    path = folder.path / "new"
    path.write_text("1")
    (file,), _ = folder.files.find(OTHERS)
    assert folder.files.copy(file) is None
    path.write_text("22")
    copied = folder.files.copy(file)
    assert copied is not None
    assert Path(copied.path).read_text() == "22"
    assert Path(copied.path).parent == folder.copies
    path.unlink()
    assert folder.files.copy(file) is None
    assert not folder.files.is_there(file)


def test_what_a_bucket_cant_hold_is_named(folder: Folder) -> None:
    (folder.path / "folder").mkdir()
    (folder.path / "nowhere").symlink_to("/nowhere/at/all")
    (folder.path / "linked").symlink_to("folder")
    (folder.path / "file").symlink_to("first")
    os.mkfifo(folder.path / "pipe")
    Path(os.fsdecode(os.fsencode(folder.path / "name-") + b"\xff")).touch()
    found, problems = folder.files.find(OTHERS)
    assert [file.name for file in found] == ["file"]
    assert sorted(problem.partition(":")[0] for problem in problems) == ["'name-\\udcff'", "linked", "nowhere"]


def test_a_folder_that_is_gone_is_no_folder_without_files(folder: Folder) -> None:
    (folder.path / "first").unlink()
    folder.path.rmdir()
    assert folder.files.find(OTHERS) == ([], ["the folder itself was removed"])


def test_the_copy_of_one_that_is_dropped_goes(folder: Folder) -> None:
    with (folder.path / "new").open("w"):
        (file,), _ = folder.files.find(ME)
        assert isinstance(file, Changed)
        folder.files.drop(file)
    assert os.listdir(folder.copies) == []  # noqa: PTH208

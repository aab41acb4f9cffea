"""Where tasks run, and what goes when the agent ends."""

from __future__ import annotations

from pathlib import Path

from skyward.worker.own_folders import own_folders


def test_they_lie_in_the_agents_run_folder(tmp_path: Path) -> None:
    """Whoever removes that removes them."""
    folders = own_folders(f"{tmp_path}/run", f"{tmp_path}/cache", f"{tmp_path}/agent")
    assert folders.work == f"{tmp_path}/run/files/work"
    assert Path(folders.work).is_dir()
    (tmp_path / "cache").mkdir()
    assert own_folders(f"{tmp_path}/run", f"{tmp_path}/cache", "").chunks == f"{tmp_path}/cache/chunks"
    folders.close()
    assert list((tmp_path / "run").iterdir()) == []


def test_without_one_they_lie_on_the_disk_of_the_cache(tmp_path: Path) -> None:
    """Temporary folders are often memory. A lock tells others that it is in use."""
    folders = own_folders("", f"{tmp_path}/cache", f"{tmp_path}/agent")
    again = own_folders("", f"{tmp_path}/cache", f"{tmp_path}/agent")
    assert folders.base.startswith(f"{tmp_path}/cache/skyward-work-")
    assert Path(folders.work).is_dir()
    assert folders.chunks == again.chunks == f"{tmp_path}/cache/chunks"
    (Path(folders.work) / "closed").mkdir()
    (Path(folders.work) / "closed" / "x").touch()
    (Path(folders.work) / "closed").chmod(0o555)
    folders.close()
    assert Path(again.work).is_dir()
    again.close()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_home_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    folders = own_folders("", f"{tmp_path}/cache/skyward", f"{tmp_path}/agent")
    assert folders.base == f"{tmp_path}/agent/files"
    assert folders.chunks == f"{tmp_path}/agent/files/chunks"

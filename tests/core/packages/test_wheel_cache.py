from __future__ import annotations

import os
import time

import pytest

from skyward.core.packages.wheel_cache import remove_unused

DAY = 86400.0


def aged(path, days):
    os.utime(path, (time.time() - days * DAY,) * 2)


@pytest.mark.parametrize("mark", ["", ".complete"])
def test_what_was_used_lately_stays(tmp_path, mark):
    for name, days in (("old", 61), ("young", 59)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / ".complete").touch()
        aged(folder / mark, days)
    remove_unused(tmp_path, mark)
    assert [folder.name for folder in tmp_path.iterdir()] == ["young"]


def test_a_folder_that_is_being_filled_stays(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "key.lock").touch()
    for path in tmp_path.iterdir():
        aged(path, 100)
    remove_unused(tmp_path, ".complete")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_is_missing_is_empty(tmp_path):
    remove_unused(tmp_path / "none")

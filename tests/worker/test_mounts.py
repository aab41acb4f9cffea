"""Mounted buckets, as the kernel lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyward.worker import mounts
from skyward.worker.mounts import hindrance, mounted_below, unmount


def test_without_the_program_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert hindrance() is not None
    unmount(str(tmp_path))


def test_without_the_device_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_DEVICE", "/nowhere/fuse")
    assert hindrance() == "no /nowhere/fuse"


def test_nothing_is_mounted_in_an_ordinary_folder(tmp_path: Path) -> None:
    assert mounted_below(tmp_path) == []
    unmount(str(tmp_path))
    assert tmp_path.is_dir()

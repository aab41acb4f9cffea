"""Builds of Python for nodes, from what uv has here or may fetch."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from skyward.core.errors import PythonNotFound
from skyward.core.packages.fetch import Target
from skyward.core.packages.python_builds import python_build

ARM = Target("aarch64", 36, "3.12")


@pytest.fixture(autouse=True)
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "builds"
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(folder))
    monkeypatch.setenv("UV_OFFLINE", "1")
    for name in ("3.12.9-linux-aarch64-gnu", "3.12.10-linux-aarch64-gnu", "3.12.11-linux-x86_64-gnu", "3.12.12-none"):
        bin_ = folder / f"cpython-{name}" / "bin"
        bin_.mkdir(parents=True)
        (bin_ / "python3.12").write_text(name)
        (bin_ / "__pycache__").mkdir()
    return folder


def test_the_newest_that_is_here_is_packed_once(tmp_path: Path) -> None:
    archive = python_build(ARM, tmp_path / "cache")
    assert archive.name == "cpython-3.12.10-linux-aarch64-gnu.tar.gz"
    with tarfile.open(archive) as packed:
        assert "cpython-3.12.10-linux-aarch64-gnu/bin/python3.12" in packed.getnames()
        assert not [name for name in packed.getnames() if "__pycache__" in name]
    changed = archive.stat().st_mtime_ns
    assert python_build(ARM, tmp_path / "cache").stat().st_mtime_ns == changed
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [archive.name]


def test_none_here_and_no_network_is_said(tmp_path: Path) -> None:
    with pytest.raises(PythonNotFound, match="uv can't fetch one"):
        python_build(Target("aarch64", 36, "3.13"), tmp_path / "cache")
    with pytest.raises(PythonNotFound, match="glibc"):
        python_build(Target("aarch64", 0, "3.12"), tmp_path / "cache")

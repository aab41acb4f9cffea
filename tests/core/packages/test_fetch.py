"""Wheels for machines unlike this one."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import pytest

from skyward.core.errors import PackagesFailed
from skyward.core.packages.fetch import Target, fetch, pip_wheel

ARM = Target("aarch64", 28, "3.12")


def wheel(folder: Path, name: str, tags: str = "py3-none-any", *requires: str) -> None:
    """Put a minimal wheel of version 1.0 in a folder."""
    info = f"{name}-1.0.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
    with zipfile.ZipFile(folder / f"{name}-1.0-{tags}.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", "\n".join(metadata))
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tags}\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for the only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_platforms() -> None:
    """From the node's C library down to the oldest, by both kinds of names."""
    platforms = Target("x86_64", 17, "3.11").platforms
    assert platforms[:3] == ["manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_16_x86_64"]
    assert platforms[-2:] == ["manylinux1_x86_64", "linux_x86_64"]
    assert Target("x86_64", 0, "3.11").platforms == ["linux_x86_64"]


@pytest.mark.slow
def test_wheels_are_those_of_the_node(index: Path, tmp_path: Path) -> None:
    """Its architecture, its Python, its markers; without dependencies, which are listed."""
    wheel(index, "fast", "cp312-cp312-manylinux_2_17_aarch64", "unlisted")
    wheel(index, "fast", "cp312-cp312-manylinux_2_17_x86_64", "unlisted")
    wheel(index, "fast", "cp312-cp312-manylinux_2_34_aarch64")
    wheel(index, "pure")
    lines = ["exact fast==1.0", 'exact absent==1.0 ; platform_machine == "x86_64"', "exact pure==1.0"]
    found = fetch([*lines, "constraints fast==1.0"], ARM, resolve=False, cache=tmp_path / "cache")
    assert names(found) == ["fast-1.0-cp312-cp312-manylinux_2_17_aarch64.whl", "pure-1.0-py3-none-any.whl"]
    assert not list((tmp_path / "cache").rglob("*.txt"))


@pytest.mark.slow
def test_a_set_is_fetched_once(index: Path, tmp_path: Path) -> None:
    """Whoever asks next gets it from the cache; old sets go."""
    cache = tmp_path / "cache"
    wheel(index, "pure")
    first = fetch(["plain pure"], ARM, resolve=True, cache=cache)
    (index / "pure-1.0-py3-none-any.whl").unlink()
    assert fetch(["plain pure"], ARM, resolve=True, cache=cache) == first
    old = time.time() - 70 * 86400
    os.utime(first[0].parent / ".complete", (old, old))
    wheel(index, "other")
    fetch(["plain other"], ARM, resolve=True, cache=cache)
    assert not first[0].exists()


@pytest.mark.slow
def test_dependencies_are_found_where_asked(index: Path, tmp_path: Path) -> None:
    """For lines that leave that to the installer."""
    wheel(index, "pure", "py3-none-any", "base")
    wheel(index, "base")
    found = fetch(["plain pure"], ARM, resolve=False, cache=tmp_path / "cache")
    assert names(found) == ["base-1.0-py3-none-any.whl", "pure-1.0-py3-none-any.whl"]


@pytest.mark.slow
def test_what_there_is_not(index: Path, tmp_path: Path) -> None:
    """pip's last words, and nothing that looks complete; it is tried again."""
    with pytest.raises(PackagesFailed, match=r"No matching distribution found for pure==1\.0"):
        fetch(["exact pure==1.0"], ARM, resolve=False, cache=tmp_path / "cache")
    wheel(index, "pure")
    assert fetch(["exact pure==1.0"], ARM, resolve=False, cache=tmp_path / "cache")


def test_this_pythons_own_pip() -> None:
    """A wheel that runs from where it is; or none."""
    found = pip_wheel()
    assert found is None or zipfile.is_zipfile(found)

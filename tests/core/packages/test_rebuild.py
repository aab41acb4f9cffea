"""Installed distributions become wheels again."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from skyward.core.errors import ConfigError
from skyward.core.packages.rebuild import rebuild
from tests.core.packages.fabricated import install


def found(site: Path, name: str) -> importlib.metadata.Distribution:
    return next(iter(importlib.metadata.distributions(name=name, path=[str(site)])))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Distributions in a prefix: one from a repository, with a program and a data file."""
    folder = tmp_path / "prefix/lib/python/site-packages"
    modules = ["mine/__init__.py", "mine/data.txt", "mine/__pycache__/x.pyc", "../../../bin/mine", "../../../bin/tool"]
    info = install(
        folder,
        "my-own",
        "0.1",
        modules=[*modules, "../../../share/mine/table.csv"],
        requires=["joblib"],
        origin={"url": "https://me:secret@host/mine.git"},
    )
    (folder / "mine/data.txt").write_text("edited since")
    (info / "entry_points.txt").write_text("[console_scripts]\nmine = mine:main\n")
    with (info / "RECORD").open("a") as record:
        record.write(f"{info.name}/entry_points.txt,,\n")
    return folder


def test_a_wheel_has_the_files_as_they_are(site: Path, tmp_path: Path) -> None:
    """Without what installers make by themselves; programs and data files are where wheels have them."""
    wheel = rebuild(found(site, "my-own"), tmp_path)
    assert Path(wheel.path).name == "my_own-0.1-py3-none-any.whl"
    assert (wheel.name, wheel.version, wheel.pure) == ("my-own", "0.1", True)
    with zipfile.ZipFile(wheel.path) as file:
        names = set(file.namelist())
        assert file.read("mine/data.txt") == b"edited since"
    info = "my_own-0.1.dist-info"
    assert names == {
        "mine/__init__.py",
        "mine/data.txt",
        "my_own-0.1.data/scripts/tool",
        "my_own-0.1.data/data/share/mine/table.csv",
        *(f"{info}/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "RECORD")),
    }


def test_the_same_files_make_the_same_wheel(site: Path, tmp_path: Path) -> None:
    """And others another."""
    first = rebuild(found(site, "my-own"), tmp_path)
    assert rebuild(found(site, "my-own"), tmp_path) == first
    (site / "mine/data.txt").write_text("edited again")
    second = rebuild(found(site, "my-own"), tmp_path)
    assert (second.content != first.content, second.path != first.path) == (True, True)


def test_a_wheel_that_nobody_used_for_long_goes(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    first = Path(rebuild(found(site, "my-own"), folder).path)
    old = time.time() - 70 * 86400
    os.utime(first.parent, (old, old))
    assert Path(rebuild(found(site, "my-own"), folder).path) == first  # used again
    (site / "mine/data.txt").write_text("edited again")
    second = Path(rebuild(found(site, "my-own"), folder).path)
    assert first.exists()
    os.utime(first.parent, (old, old))
    (site / "mine/data.txt").write_text("and again")
    third = Path(rebuild(found(site, "my-own"), folder).path)
    assert [first.exists(), second.exists(), third.exists()] == [False, True, True]


@pytest.mark.slow
def test_pip_installs_it(site: Path, tmp_path: Path) -> None:
    """With its metadata, and checking the digests in its list of files."""
    wheel = rebuild(found(site, "my-own"), tmp_path)
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, wheel.path], check=True)
    assert (target / "mine/data.txt").read_text() == "edited since"
    assert found(target, "my-own").requires == ["joblib"]


def test_tags_of_several_platforms(site: Path, tmp_path: Path) -> None:
    """They are listed in the name; such a wheel is not for any machine."""
    tags = ["cp311-cp311-manylinux_2_17_x86_64", "cp311-cp311-manylinux2014_x86_64"]
    (site / "my_own-0.1.dist-info/WHEEL").write_text("".join(f"Tag: {tag}\n" for tag in tags))
    wheel = rebuild(found(site, "my-own"), tmp_path)
    assert Path(wheel.path).name == "my_own-0.1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    assert not wheel.pure


@pytest.mark.parametrize(
    ("gone", "words"), [("mine/data.txt", "of it can't be read"), ("RECORD", "no list of its files")]
)
def test_what_is_broken_is_refused(gone: str, words: str, site: Path, tmp_path: Path) -> None:
    """The error says what to do, and no password."""
    next(site.rglob(Path(gone).name)).unlink()
    with pytest.raises(ConfigError, match=words) as refused:
        rebuild(found(site, "my-own"), tmp_path)
    assert "secret" not in str(refused.value)

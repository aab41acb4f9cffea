"""The program as nodes get it."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from skyward.core.packages.fetch import Target
from skyward.core.packages.lists import driver_kind
from skyward.core.packages.uv_program import packed_uv, uv_here, uv_name

HERE = Target(os.uname().machine, 36, "3.12")


@pytest.mark.slow
def test_this_machines_program_is_packed_once(tmp_path: Path) -> None:
    packed = packed_uv(driver_kind(), driver_kind(), HERE, tmp_path)
    assert packed is not None
    assert packed.name.startswith(uv_name())
    here = uv_here()
    assert here is not None
    with gzip.open(packed) as file:
        assert file.read(4096) == Path(here).read_bytes()[:4096]
    changed = packed.stat().st_mtime_ns
    assert packed_uv(driver_kind(), driver_kind(), HERE, tmp_path) == packed
    assert packed.stat().st_mtime_ns == changed
    assert list(tmp_path.iterdir()) == [packed]


def test_there_is_none_for_other_systems(tmp_path: Path) -> None:
    assert packed_uv("FreeBSD amd64", driver_kind(), HERE, tmp_path) is None
    assert packed_uv("Linux x86_64", driver_kind(), Target("x86_64", 0, "3.12"), tmp_path) is None  # another C library


NONE = """
from pathlib import Path
from skyward.core.errors import PythonNotFound
from skyward.core.packages.fetch import Target
from skyward.core.packages.lists import driver_kind
from skyward.core.packages.python_builds import python_build
from skyward.core.packages.uv_program import packed_uv, uv_here, uv_name
here = Target("x86_64", 36, "3.12")
assert uv_here() is None
assert uv_name().startswith("uv-")
assert packed_uv(driver_kind(), driver_kind(), here, Path("cache")) is None
try:
    python_build(here, Path("cache"))
except PythonNotFound as error:
    assert "no uv on this machine" in str(error)
else:
    raise AssertionError
"""


def _removed(folder: Path) -> list[str]:
    """Somebody has removed the program of the distribution."""
    (folder / "uv-0.0.1.dist-info").mkdir()
    (folder / "uv-0.0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: uv\nVersion: 0.0.1\n")
    (folder / "uv-0.0.1.dist-info/RECORD").write_text("../../../bin/uv,,\n")
    return [sys.executable]


def _never_installed(folder: Path) -> list[str]:
    """An environment with everything but the distribution."""
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("uv") and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return [sys.executable, "-S"]


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [_removed, _never_installed])
def test_without_it_nodes_do_with_pip(tmp_path: Path, prepare: Callable[[Path], list[str]]) -> None:
    """And no index is there that has it."""
    python = prepare(tmp_path)
    (tmp_path / "uv.py").write_text("raise RuntimeError('a module of the user, who means something else by uv')\n")
    paths = os.pathsep.join([str(tmp_path), *map(str, Path(__file__).parents[3:4])])
    own = {"PYTHONPATH": paths, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "XDG_CACHE_HOME": str(tmp_path)}
    without = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [*python, "-c", NONE], cwd=tmp_path, env={**without, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

"""Editable installs made by real build backends: their modules and metadata, laid out, work in a bare interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from skyward.core.code.distributions import Editable, editables, metadata_beside, owner_beside
from tests.backends import backends

__all__ = ["backends"]  # a fixture

REPOSITORY = Path(__file__).resolve().parents[3]

PROBE = """
import json, os, sys
import churn
from skyward.core.blobs.snapshots import Snapshots
from skyward.core.code.local_code import CodeSettings, LocalCode
import msgpack
it = LocalCode(Snapshots(), CodeSettings(True))
version = it.now(look=True)
for path, _, bundle, offset, size in msgpack.unpackb(version.manifest):
    target = os.path.join(sys.argv[1], path.decode())
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(bytes(version.blobs[version.bundles[bundle]])[offset : offset + size])
print(json.dumps([it.summary, churn.__file__]))
"""
BARE = """
import importlib.metadata, importlib.resources, json, sys
sys.path.insert(0, sys.argv[1])
import churn
(entry,) = importlib.metadata.entry_points(group="churn.plugins")
files = importlib.resources.files("churn")
compiled = None
if (files / "has_fast").is_file():
    from churn import _fast
    compiled = _fast.answer()
version, data = importlib.metadata.version("churn"), (files / "data/w.txt").read_text()
print(json.dumps([churn.__file__, version, entry.load()(), data, compiled]))
"""
FAST = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fast", "", -1, methods};
PyMODINIT_FUNC PyInit__fast(void) { return PyModule_Create(&module); }
"""
COMMON = """
[project]
name = "churn"
version = "1.2.3"
description = "x"
[project.entry-points."churn.plugins"]
first = "churn.plugin:run"
"""
SETUPTOOLS = '[build-system]\nrequires = ["setuptools", "wheel"]\nbuild-backend = "setuptools.build_meta"\n'
KINDS: dict[
    str, tuple[str, str, tuple[str, ...]]
] = {  # the package's folder, the build system, options of the installer
    "setuptools": ("src/churn", SETUPTOOLS, ()),
    "setuptools-finder": (
        "lib/odd_place",
        f'{SETUPTOOLS}[tool.setuptools]\npackages = ["churn"]\npackage-dir = {{churn = "lib/odd_place"}}\n',
        (),
    ),
    "setuptools-strict": ("src/churn", SETUPTOOLS, ("--config-setting", "editable_mode=strict")),
    "setuptools-compiled": (
        "src/churn",
        f'{SETUPTOOLS}[tool.setuptools]\next-modules = [{{name = "churn._fast", sources = ["src/churn/fast.c"]}}]\n',
        (),
    ),
    "hatchling": ("src/churn", '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n', ()),
    "poetry": (
        "src/churn",
        '[build-system]\nrequires = ["poetry-core"]\nbuild-backend = "poetry.core.masonry.api"\n',
        (),
    ),
    "flit": (
        "src/churn",
        '[build-system]\nrequires = ["flit_core"]\nbuild-backend = "flit_core.buildapi"\n'
        '[tool.flit.module]\nname = "churn"\n',
        (),
    ),
}


def make_project(folder: Path, package: str, system: str, kind: str) -> None:
    place = folder / package
    (place / "data").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(f"{system}\n{COMMON}")
    (place / "__init__.py").write_text('"""Churn."""\n')
    (place / "plugin.py").write_text("def run(): return 'ran'\n")
    (place / "data/w.txt").write_text("5")
    if kind == "setuptools-strict":
        (folder / "pyproject.toml").write_text(
            f'{system}\n{COMMON}[tool.setuptools.package-data]\nchurn = ["data/*"]\n'
        )
    if kind == "setuptools-compiled":
        (place / "fast.c").write_text(FAST)
        (place / "has_fast").write_text("")


def make_environment(folder: Path) -> Path:
    """An environment of its own, in which what tests need is found, but is not installed; return its interpreter."""
    subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "zz_tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n{REPOSITORY}\n")
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_editable_installs_arrive_with_their_metadata(kind: str, tmp_path: Path, backends: Path) -> None:
    package, system, options = KINDS[kind]
    make_project(tmp_path / "a project", package, system, kind)
    python = make_environment(tmp_path / "env")
    install = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-index",
        "--python",
        str(python),
    ]
    install += ["--no-cache", "--find-links", str(backends), *options, "-e", str(tmp_path / "a project")]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    laid_out = tmp_path / "laid out"
    summary, here = report(python, PROBE, str(laid_out))
    assert str(tmp_path / "a project") in here, "it is installed in place"
    assert summary.startswith("1 editable package, ")
    there, version, entry, data, compiled = report(sys.executable, BARE, str(laid_out))
    assert there == str(laid_out / "churn/__init__.py")
    assert (version, entry, data) == ("1.2.3", "ran", "5")
    assert compiled == (42 if kind == "setuptools-compiled" else None)


def report(python: Any, program: str, *arguments: str) -> Any:
    done = subprocess.run([python, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_was_built_into_the_environment(tmp_path: Path) -> None:
    metadata = tmp_path / "rusty-1.0.dist-info"
    metadata.mkdir()
    (metadata / "direct_url.json").write_text('{"url": "file:///home/ann/a%20b", "dir_info": {"editable": true}}')
    (metadata / "RECORD").write_text("rusty/__init__.py,,\nrusty/rusty.abi3.so,,\nrusty-1.0.dist-info/METADATA,,\n")
    (found,) = editables([str(tmp_path), str(tmp_path), "/nowhere"])
    assert found == Editable("rusty", "/home/ann/a b", str(metadata), frozenset({"rusty"}))
    assert found.holds("/home/ann/a b/src/x.py")
    assert not found.holds("/home/ann/a b2/x.py")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"url": "file:///x"}', '{"dir_info": {"editable": true}}', '{"dir_info": 1}']
)
def test_other_distributions_are_not_editable(tmp_path: Path, text: str) -> None:
    (tmp_path / "a-1.dist-info").mkdir()
    (tmp_path / "a-1.dist-info/direct_url.json").write_text(text)
    (tmp_path / "b-1.dist-info").mkdir()
    assert editables([str(tmp_path)]) == []


def test_egg_links_lead_to_the_project(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "src/churn.egg-info").mkdir(parents=True)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/churn.egg-link").write_text(f"{project}/src\n../")
    (found,) = editables([str(tmp_path / "site")])
    assert (found.name, found.project, found.metadata) == ("churn", str(project), f"{project}/src/churn.egg-info")


def test_the_deepest_project_comes_first(tmp_path: Path) -> None:
    for name, place in (("outer", "/home/repo"), ("inner", "/home/repo/libs/inner")):
        (tmp_path / f"{name}-1.dist-info").mkdir()
        (tmp_path / f"{name}-1.dist-info/direct_url.json").write_text(
            json.dumps({"url": f"file://{place}", "dir_info": {"editable": True}})
        )
    assert [each.name for each in editables([str(tmp_path)])] == ["inner", "outer"]


def test_what_lies_beside_a_module(tmp_path: Path) -> None:
    (tmp_path / "churn-1.dist-info").mkdir()
    (tmp_path / "churn-1.dist-info/RECORD").write_text("churn/__init__.py,,\nother.py,,\n")
    (tmp_path / "my_project.egg-info").mkdir()
    (tmp_path / "my_project.egg-info/top_level.txt").write_text("mine\nyours\n")
    assert owner_beside(str(tmp_path), "churn") == owner_beside(str(tmp_path), "other") == "churn"
    assert owner_beside(str(tmp_path), "mine") is None
    assert owner_beside("/nowhere", "mine") is None
    assert metadata_beside(str(tmp_path), "mine") == [str(tmp_path / "my_project.egg-info")]
    assert metadata_beside(str(tmp_path), "my-project") == [str(tmp_path / "my_project.egg-info")]
    assert metadata_beside(str(tmp_path), "other") == [str(tmp_path / "churn-1.dist-info")]
    assert metadata_beside("/nowhere", "mine") == []

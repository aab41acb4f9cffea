"""What is compiled here is what nodes take, if their sources are the very same."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skyward.core.packages import compile_ahead
from skyward.core.packages.compiled_modules import packed_modules

Node = Callable[..., str]
HERE = "place = (lambda: 0).__code__.co_filename\n# compiled here"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages here; what is compiled in it says where."""
    folder = tmp_path / "site-packages"
    (folder / "pack").mkdir(parents=True)
    for name in ("same", "other", "stale", "plain"):
        (folder / f"pack/{name}.py").write_text("place = (lambda: 0).__code__.co_filename\nprint('compiled', place)\n")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def node(site: Path, tmp_path: Path) -> Node:
    """Compiles on a node what is in the archive, and returns what an import says, with what Python says of it."""
    there = tmp_path / "node"
    (there / "pack").mkdir(parents=True)
    for file in (site / "pack").glob("*.py"):
        (there / "pack" / file.name).write_bytes(file.read_bytes())

    def run(name: str, archive: bytes, *lines: str) -> str:
        parts = [tmp_path / "archive.0", tmp_path / "archive.1"]
        parts[0].write_bytes(archive[:100])
        parts[1].write_bytes(archive[100:])
        program = [sys.executable, "-I", "-c", Path(compile_ahead.__file__).read_text(), ".", *map(str, parts)]
        done = subprocess.run(program, cwd=there, input="\n".join(lines), capture_output=True, text=True, check=True)
        assert done.stdout == done.stderr == ""
        asked = [sys.executable, "-v", "-c", f"import pack.{name} as found; print(found.place, end='')"]
        done = subprocess.run(asked, cwd=there, capture_output=True, text=True, check=True)
        assert done.stdout.endswith(str(there / f"pack/{name}.py")), "tracebacks name the node's own file"
        assert f"matches {there / f'pack/{name}.py'}" in done.stderr, "nothing is compiled or checked again"
        return Path(importlib.util.cache_from_source(str(there / f"pack/{name}.py"))).read_bytes()[16:].hex()

    return run


def compiled(source: Path, text: str) -> str:
    """Have a file of that text compiled in place of a source, so that one can tell whether it was taken."""
    state, real = source.stat(), source.read_text()
    source.write_text(text.ljust(len(real)))
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    place = py_compile.compile(str(source), doraise=True)
    source.write_text(real)
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert place is not None
    return Path(place).read_bytes()[16:].hex()


@pytest.mark.slow
def test_what_is_compiled_here_is_taken(site: Path, node: Node) -> None:
    ours = compiled(site / "pack/same.py", HERE)
    assert node("same", packed_modules(("pack/same.py", "pack/plain.py")), "pack/same.py", "pack/plain.py") == ours


@pytest.mark.slow
def test_what_differs_is_compiled_there(site: Path, node: Node) -> None:
    """Another source here, a source that changed since it was compiled here, and one that was not compiled here."""
    (site / "pack/other.py").write_text(HERE)
    ours = compiled(site / "pack/other.py", HERE)
    stale = compiled(site / "pack/stale.py", HERE)
    os.utime(site / "pack/stale.py", (1, 1))
    names = tuple(f"pack/{name}.py" for name in ("other", "stale", "plain", "absent"))
    archive = packed_modules(names)
    assert node("other", archive, *names) != ours
    assert node("stale", archive, *names) != stale
    assert node("plain", b"no archive at all", *names)

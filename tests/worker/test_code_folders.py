"""A version of the code is laid out once its bundles are here, and shares files with earlier ones."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from skyward.core.protocol.messages import Code
from skyward.worker.blob_store import Store
from skyward.worker.code_folders import CodeFolders, enter


class Node:
    """Folders in which versions are laid out, and what was said of tasks."""

    def __init__(self, folder: Path, *parents: Path) -> None:
        self.folder = folder
        self.unblocked: list[int] = []
        self.refused: list[tuple[int, str]] = []
        self.store = Store(list(map(str, parents)))
        self.code = CodeFolders(
            str(folder), self.store, self.unblocked.append, lambda task, why: self.refused.append((task, why))
        )

    def announce(self, version: int, bundles: dict[bytes, bytes], *entries: tuple[Any, ...]) -> None:
        """Entries: path, executable, number of the bundle, offset, size."""
        self.code.announced(Code(version, list(bundles)), msgpack.packb(entries))
        for name, content in bundles.items():
            self.store.add(name, len(content), 0, content)

    def files(self, version: int) -> dict[str, bytes]:
        folder = self.folder / str(version)
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(params=["files", "memory"])
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    it = Node(tmp_path / "code", *([tmp_path] if request.param == "files" else []))
    yield it
    it.store.close()


def test_a_version_is_laid_out_and_its_tasks_begin(node: Node) -> None:
    assert not node.code.use(7, 1)
    assert not node.code.use(8, 1)
    assert node.code.lacks(7)
    node.code.release(8)
    node.announce(
        1,
        {b"one": b"abcdef", b"two": b"x"},
        (b"a.py", False, 0, 0, 3),
        (b"p/q/run", True, 0, 3, 3),
        (b"e", False, 1, 1, 0),
    )
    assert list(node.code.arrived(1)) == [b"one", b"two"]
    assert node.unblocked == [7]
    assert not node.code.lacks(7)
    assert node.code.use(9, 1)
    assert node.files(1) == {"a.py": b"abc", "p/q/run": b"def", "e": b""}
    assert os.access(node.folder / "1/p/q/run", os.X_OK)
    assert not os.access(node.folder / "1/a.py", os.X_OK)


def test_what_did_not_change_is_shared_with_what_python_compiled_of_it(node: Node) -> None:
    node.announce(1, {b"one": b"x=1y=1"}, (b"a.py", False, 0, 0, 3), (b"b.py", False, 0, 3, 3))
    node.code.arrived(1)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(node.folder / "1")], check=True)
    node.announce(2, {b"one": b"x=1y=1", b"two": b"x=2"}, (b"a.py", False, 1, 0, 3), (b"p/b.py", False, 0, 3, 3))
    node.code.arrived(2)
    assert (node.folder / "2/a.py").read_bytes() == b"x=2"
    assert (node.folder / "2/p/b.py").samefile(node.folder / "1/b.py")
    compiled = [file for file in node.files(2) if file.endswith(".pyc")]
    assert [Path(file).name.split(".")[0] for file in compiled] == ["b"]
    assert node.files(1)["a.py"] == b"x=1"


@pytest.mark.parametrize("path", [b"/etc/x", b"../x", b"a/../../x"])
def test_no_file_is_laid_out_elsewhere(node: Node, path: bytes) -> None:
    node.code.use(7, 1)
    node.announce(1, {b"one": b"abc"}, (path, False, 0, 0, 3))
    node.code.arrived(1)
    assert node.refused[0][0] == 7
    assert "can't be called" in node.refused[0][1]
    assert node.code.refusal(1) == node.refused[0][1]
    assert not node.code.use(8, 1)
    assert list(node.folder.iterdir()) == []


def test_a_full_disk_refuses_the_tasks_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "code").write_text("no folder can be made here")
    node = Node(tmp_path / "code", tmp_path)
    node.code.use(7, 1)
    node.announce(1, {b"one": b"abc"}, (b"a.py", False, 0, 0, 3))
    node.code.arrived(1)
    assert [task for task, _ in node.refused] == [7]
    assert "can't lay out your code" in node.refused[0][1]
    node.store.close()


def test_entered_modules_come_before_all_others(tmp_path: Path) -> None:
    (tmp_path / "v/space").mkdir(parents=True)
    (tmp_path / "v/colorsys.py").write_text("MINE = 1\n")
    (tmp_path / "v/space/inner.py").write_text("MINE = 2\n")
    program = """
import colorsys, json, sys
from skyward.worker.code_folders import enter
enter(sys.argv[1])
import colorsys, space.inner
print(json.dumps([colorsys.MINE, space.inner.MINE, sys.path[0]]))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "v")], capture_output=True, check=True)
    assert json.loads(done.stdout) == [1, 2, str(tmp_path / "v")]


def test_a_later_version_adds_modules_and_what_was_imported_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    for version, names in (("1", ["only_here"]), ("2", ["only_here", "later_here"])):
        (tmp_path / version).mkdir()
        for name in names:
            (tmp_path / version / f"{name}.py").write_text("")
    enter(str(tmp_path / "1"))
    module = importlib.import_module("only_here")
    before = len(sys.path)
    enter(str(tmp_path / "2"))
    assert importlib.import_module("only_here") is module
    assert importlib.import_module("later_here").__file__ == str(tmp_path / "2/later_here.py")
    assert len(sys.path) == before

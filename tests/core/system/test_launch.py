"""How processes of ours begin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from skyward.core.system.launch import command

_SAY = """
def main():
    import json, sys
    print(json.dumps([sys.argv, sys.path, sys.flags.optimize, sys.flags.isolated]))
"""


def start(root: Path, folder: Path, *options: str) -> list[list[str]]:
    """What a module says that a Python with these options starts in a folder."""
    code = (
        f"import subprocess, sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
        f"from skyward.core.system.launch import command\n"
        f"subprocess.run([*command('said_by_test', {str(root)!r}), 'one', 'two'], check=True)"
    )
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=folder, stdout=subprocess.PIPE, check=True)
    said: list[list[str]] = json.loads(done.stdout)
    return said


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "said_by_test.py").write_text(_SAY)
    return tmp_path / "root"


def test_the_working_directory_is_not_searched(root: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    for name in ("json", "subprocess", "said_by_test"):
        (planted / f"{name}.py").write_text("raise SystemExit('planted')")
    done = subprocess.run(
        [*command("said_by_test", str(root)), "one"], cwd=planted, stdout=subprocess.PIPE, check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    argv, path, *_ = json.loads(done.stdout)
    assert argv == ["-c", "one"]
    assert path[0] == str(root)
    assert str(planted) not in path
    assert "" not in path


def test_our_own_code_keeps_its_place_where_it_is_found_anyway(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(root)]))
    _, path, *_ = start(root, tmp_path)
    assert path[:2] == [str(tmp_path), str(root)]


def test_options_of_the_interpreter_are_passed_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert start(root, tmp_path, "-O")[2:] == [1, 0]
    _, path, _, isolated = start(root, tmp_path, "-I")
    assert isolated
    assert str(tmp_path) not in path

"""The command `skyward run`: what it is told, and by which files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_program import folder, run

__all__ = ["folder"]  # a fixture

pytestmark = pytest.mark.slow


def test_what_is_wrong_is_said_before_anything_starts(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.skyward.pools.small]\nnodess = 2\n")
    for arguments, words in (
        (["nosuch.py"], "skyward: can't read nosuch.py: No such file or directory; for a module, write -m"),
        (["-m", "nosuch"], "skyward: no module 'nosuch' can be run"),
        (["--pool", "smal", "train.py"], "did you mean 'small'?"),
        (["--pool", "small", "train.py"], "unknown key 'nodess'; did you mean nodes?"),
        (["-p", "narnia", "train.py"], "narnia"),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
    assert run("--nodes", "x", "train.py").returncode == 2


def test_a_pool_of_the_project(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(
        '[tool.skyward.pools.two]\nnodes = 2\nworker = {concurrency = 3}\nimage = {env = {FROM = "file"}}\n'
    )
    (folder / "says.py").write_text(
        "import os\nfrom joblib import Parallel, delayed, effective_n_jobs\n"
        "def get(name):\n    return os.environ.get(name)\n"
        "print(effective_n_jobs(-1), Parallel(n_jobs=-1)([delayed(get)('FROM')]))\n"
    )
    command = [sys.executable, "-m", "skyward.cli", "run", "--pool", "two"]
    for more, slots in (([], 6), (["--concurrency", "2"], 4), (["--nodes", "1"], 3)):
        done = subprocess.run([*command, *more, "says.py"], capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout == f"{slots} ['file']\n", done.stderr


def test_a_live_page_of_a_program() -> None:
    done = run("--dashboard", "train.py")
    assert done.returncode == 0, done.stderr
    assert "live page: http://127.0.0.1:" in done.stderr

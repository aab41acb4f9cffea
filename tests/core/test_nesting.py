"""Pools inside tasks: which may be opened."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import skyward as sky
from skyward.core import nesting
from skyward.core.whoami import DEPTH


def open_inside(depth: int) -> object:
    """In a task: a pool, and in its task another, and so on; what came of it."""
    if depth == 0:
        return nesting.depth()
    with sky.Compute(console=False) as pool:
        return pool.submit(open_inside, depth - 1).result(60)


@pytest.mark.slow
def test_a_pool_in_a_task_and_none_in_that_ones() -> None:
    with sky.Compute(console=False) as pool:
        assert pool.submit(open_inside, 1).result(60) == 2
        with pytest.raises(sky.NestedPool, match="pools may not nest deeper"):
            pool.submit(open_inside, 2).result(60)


@pytest.mark.slow
def test_a_module_that_opens_a_pool_when_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "eager.py").write_text(
        "import skyward as sky\n\n"
        "def work(x):\n    return x\n\n"
        "with sky.Compute(concurrency=2, console=False) as pool:\n"
        "    try:\n        list(pool.map(work, range(4)))\n"
        "    except sky.SkywardError as error:\n        print(type(error).__name__, error)\n"
    )
    (tmp_path / "program.py").write_text(
        "import skyward as sky\n\n"
        "def lazy():\n    import eager\n\n"
        "if __name__ == '__main__':\n"
        "    import eager\n"
        "    with sky.Compute(console=False) as pool:\n"
        "        error = pool.submit(lazy).exception(60)\n"
        "        print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, text=True, timeout=120, check=True
    )
    loaded, ran = done.stdout.splitlines()
    for words in ("module 'eager' opens a pool", "eager.py:6", "node", 'if __name__ == "__main__"'):
        assert words in loaded
        assert words in ran
    assert loaded.startswith("PayloadError")
    assert ran.startswith("NestedPool")


@pytest.fixture
def in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEPTH, "1")


@pytest.mark.usefixtures("in_a_task")
def test_what_is_run_and_not_imported_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from skyward.core import nesting\nnesting.check([])\n"
    (tmp_path / "checks_itself.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(code, "<cell>", "exec"), {"__name__": "__main__"})
    runpy.run_path(str(tmp_path / "checks_itself.py"))
    with pytest.raises(sky.NestedPool, match="checks_itself"):
        importlib.import_module("checks_itself")
    monkeypatch.delenv(DEPTH)
    importlib.import_module("checks_itself")  # the program's own affair


def test_a_program_without_a_guard_in_a_child_of_multiprocessing() -> None:
    code = "from skyward.core import nesting\nnesting.check([])\n"
    with pytest.raises(sky.NestedPool, match="child process of multiprocessing"):
        exec(compile(code, "<string>", "exec"), {"__name__": "__mp_main__"})


@pytest.mark.usefixtures("in_a_task")
def test_a_task_rents_nothing_unless_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sky.NestedPool, match=r"would rent machines \(aws\).*SKYWARD_RENT_IN_TASKS=1"):
        sky.Compute(provider=sky.AWS(region="eu-west-1"), console=False).start()
    monkeypatch.setenv(nesting.RENT, "1")
    nesting.check(["aws"])
    monkeypatch.setenv(DEPTH, "2")
    with pytest.raises(sky.NestedPool, match="not nest deeper"):
        nesting.check(["aws"])
    monkeypatch.delenv(DEPTH)
    monkeypatch.delenv(nesting.RENT)
    nesting.check(["aws"])

"""joblib's own tests of `Parallel`, of the installed joblib, pointed at our backend from outside.

joblib's tests are parametrised with the names of its backends, and those lists are literals. This plugin keeps the rows
with "loky" and puts "skyward" in its place; lists that joblib makes of its registry contain us anyway. What is not
parametrised by backend runs too where it uses the default one, which is ours in this run. Tests that speak of loky
itself, of threads or of no backend at all are left out: they say nothing about us. With loky as the backend the same
tests run as joblib wrote them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from joblib import parallel

from skyward.joblib_ext.backend import SkywardBackend
from skyward.joblib_ext.slot_backend import NAME
from tests.foreign import pool
from tests.foreign.runner import Suite, select

HERE = Path(__file__).parent
OURS = os.environ.get("FOREIGN_BACKEND", NAME) == NAME

DEFAULT = {
    "test_background_thread_parallelism",
    "test_dispatch_race_condition",
    "test_effective_n_jobs",
    "test_exception_dispatch",
    "test_globals_update_at_each_parallel_call",
    "test_memmap_with_big_offset",
    "test_nested_exception_dispatch",
    "test_parallel_kwargs",
    "test_parallel_with_exhausted_iterator",
}
"""Tests that use the default backend without naming it."""

LITERAL = {
    "test_backend_hinting_always_running",
    "test_nested_loop_with_exception_with_loky",
    "test_parallel_byteorder_corruption",
}
if pool.IS_LOCAL:  # they compare where libraries lie with where they lie here
    LITERAL |= {"test_threadpool_limitation_in_child_context", "test_threadpool_limitation_in_child_loky"}
"""Tests whose code says "loky" and means any backend of processes: that name stands for ours while they run."""

FAILS = {
    "*::test_nested_parallel_warnings*": "loky's and multiprocessing's own warnings about nesting; ours nests",
    "*::test_memmapping_leaks*": "looks for memory maps' files in a local temp_folder, which has no meaning on nodes",
}


def suite() -> Suite:
    modules = [f"joblib.test.{name}" for name in ("test_parallel", "test_config")]
    return Suite("tests.foreign.joblib_suite", ["--noconftest", "--pyargs", *modules], FAILS, least=110, peer="loky")


# --- the plugin ---

_NAMES = pytest.StashKey[set[str]]()  # of the tests of a module whose rows were rewritten


def pytest_configure(config: pytest.Config) -> None:
    for name in ("thread_unsafe", "no_cover"):
        config.addinivalue_line("markers", f"{name}: of joblib's")
    if OURS:
        parallel.DEFAULT_BACKEND = NAME
        opened = pool.make().start()
        config.add_cleanup(lambda: opened.close(cancel=True))


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.own_markers
    rewritten = [_rewrite(mark) for mark in marks]
    metafunc.definition.parent.stash.setdefault(_NAMES, set())
    if any(new is not old for new, old in zip(rewritten, marks, strict=True)):
        metafunc.definition.parent.stash[_NAMES].add(metafunc.definition.name)
    if OURS:
        marks[:] = rewritten


def _rewrite(mark: pytest.Mark) -> pytest.Mark:
    if mark.name != "parametrize":
        return mark
    names, rows = mark.args[0], list(mark.args[1])
    if not any(_is_ours(cell) or cell == "loky" for row in rows for cell in _cells(row)):
        return mark
    ours = [row for row in rows if any(_is_ours(cell) for cell in _cells(row))]
    if not ours:
        ours = [_replaced(row) for row in rows if "loky" in [cell for cell in _cells(row) if isinstance(cell, str)]]
    return pytest.Mark(mark.name, (names, _expected(names, ours), *mark.args[2:]), mark.kwargs, _ispytest=True)


def _is_ours(cell: object) -> bool:
    return (isinstance(cell, str) and cell == NAME) or isinstance(cell, SkywardBackend)


def _cells(row: object) -> Iterable[object]:
    return row if isinstance(row, tuple) else (row,)


def _replaced(row: object) -> object:
    cells = tuple(NAME if isinstance(cell, str) and cell == "loky" else cell for cell in _cells(row))
    return cells if isinstance(row, tuple) else cells[0]


def _expected(names: str, rows: list[object]) -> list[object]:
    """loky has one executor for all calls, so an abort ends them all, and a test expects that; ours doesn't."""
    if names == "backend, error":
        return [(NAME, False) for _ in rows]
    return rows


# --- selection ---


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    select(config, items, _is_about_us)
    for item in items:
        if OURS and getattr(item, "originalname", "") == "test_nested_exception_dispatch":  # expected to fail for loky
            item.own_markers[:] = [mark for mark in item.own_markers if mark.name != "xfail"]


def _is_about_us(item: pytest.Item) -> bool:
    name = getattr(item, "originalname", item.name)
    return name in DEFAULT | LITERAL or name in item.parent.stash.get(_NAMES, set())


@pytest.fixture(autouse=True)
def _scripts_have_pools(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of these tests open a pool of their own, see child/sitecustomize.py."""
    if OURS and request.node.name.startswith("test_parallel_with_"):
        call = request.module.check_subprocess_call
        patient = lambda *args, **options: call(*args, **options | {"timeout": 60})  # noqa: E731  # for a busy machine
        monkeypatch.setattr(request.module, "check_subprocess_call", patient)
        path = [str(HERE / "child"), str(HERE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
        monkeypatch.setenv("FOREIGN_CHILD", "1")


@pytest.fixture(autouse=True)
def _loky_is_ours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if OURS and getattr(request.node, "originalname", "") in LITERAL:
        monkeypatch.setitem(parallel.BACKENDS, "loky", SkywardBackend)

"""A pool that the tests of a module share, and the watch over leftovers told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import pytest

import skyward as sky
from tests import conftest as outer
from tests.joblib_ext.counted import Counted

VERSION = tuple(int(part) for part in joblib.__version__.split(".")[:2])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """joblib has learned what some tests are about."""
    if VERSION >= (1, 5):
        return
    here = Path(__file__).parent
    for item in (item for item in items if item.path.parent == here):
        if VERSION < (1, 4) and "unordered" in item.name:
            item.add_marker(pytest.mark.skip(reason="joblib 1.4 brought unordered generators"))
        if VERSION < (1, 5) and ("initializer" in item.name or "unknown_settings" in item.name):
            item.add_marker(pytest.mark.skip(reason="joblib 1.5 lets Parallel take a backend's arguments"))


@pytest.fixture(scope="module")
def pool() -> Iterator[sky.Compute]:
    """Two nodes with two slots each on this machine, and joblib's backend as long as the module runs."""
    before = outer._agents()
    with sky.Compute(nodes=2, concurrency=2, plugins=[sky.plugins.joblib()], console=False) as opened:
        yield opened
    _wait_for(lambda: sorted(outer._agents() - before))


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    """Cached functions with a folder of their own."""
    return Counted(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """As for all tests, but the module's pool, its threads and its slots may stay."""
    shared = request.getfixturevalue("pool").name if "pool" in request.fixturenames else None
    before, threads = outer._agents(), outer._threads()
    yield
    _wait_for(lambda: sorted(outer._threads() - threads))
    if shared is None:
        _wait_for(lambda: sorted(outer._agents() - before))


def _wait_for(left: Callable[[], list[str]]) -> None:
    end = time.monotonic() + outer._GRACE
    while found := left():
        if time.monotonic() > end:
            pytest.fail(f"left behind: {found}")
        time.sleep(0.01)

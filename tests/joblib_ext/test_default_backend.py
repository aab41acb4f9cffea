"""Calls that nothing sends to a pool, while one is open."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import joblib
import pytest
from joblib import Parallel, delayed, parallel_config, register_parallel_backend
from joblib.parallel import DEFAULT_BACKEND, FallbackToBackend, LokyBackend, get_active_backend

import skyward as sky
from skyward.joblib_ext.backend import SkywardBackend
from skyward.joblib_ext.default_backend import DefaultBackend


def node() -> str | None:
    return os.environ.get("SKYWARD_NODE")


def told(call: Callable[[], object], *, in_thread: bool = True) -> list[str]:
    """What is said while something runs."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if in_thread:
            with ThreadPoolExecutor(1, "theirs") as executor:
                executor.submit(call).result()
        else:
            call()
    return [str(one.message) for one in said]


def begin(n_jobs: int = 2) -> type:
    """Which backend a call would use; joblib's own would start processes."""
    with pytest.raises(FallbackToBackend) as caught:
        get_active_backend()[0].configure(n_jobs=n_jobs)
    return type(caught.value.backend)


def open_pool(**options: object) -> sky.Compute:
    return sky.Compute(console=False, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_another_thread_is_told_once_what_to_do() -> None:
    assert DEFAULT_BACKEND == "loky"
    with open_pool(plugins=[sky.plugins.joblib()]):
        assert told(lambda: begin(1)) == []
        (text,) = told(begin)
        assert "in thread 'theirs_0', not on the nodes of the open skyward pool" in text
        assert 'parallel_config(backend="skyward")' in text
        assert told(begin) == []
    assert joblib.parallel.DEFAULT_BACKEND == "loky"
    assert type(get_active_backend()[0]) is LokyBackend


@pytest.mark.slow
def test_what_the_text_says_holds() -> None:
    def here() -> list[str | None]:
        with parallel_config(backend="skyward"):
            return list(Parallel(n_jobs=-1)([delayed(node)()] * 2))

    with open_pool(plugins=[sky.plugins.joblib()]), ThreadPoolExecutor(1) as executor:
        assert executor.submit(here).result() == ["node-1"] * 2
        with parallel_config(backend="loky"):
            assert type(get_active_backend()[0]) is LokyBackend


@pytest.mark.slow
def test_a_thread_that_takes_the_context_along_takes_the_pool_along() -> None:
    async def run() -> tuple[list[str | None], int]:
        nodes = await asyncio.to_thread(lambda: Parallel(n_jobs=-1)([delayed(node)()] * 2))
        return nodes, await asyncio.to_thread(joblib.effective_n_jobs, -1)

    with open_pool(concurrency=3, plugins=[sky.plugins.joblib()]):
        assert told(lambda: asyncio.run(run()), in_thread=False) == []
        assert asyncio.run(run()) == (["node-1"] * 2, 3)
        with open_pool(concurrency=2, plugins=[sky.plugins.joblib()]):
            assert asyncio.run(run())[1] == 2
        assert asyncio.run(run())[1] == 3


@pytest.mark.slow
def test_a_pool_that_another_context_closes_is_not_taken_along() -> None:
    pool = open_pool(plugins=[sky.plugins.joblib()]).start()
    closer = threading.Thread(target=pool.close)
    closer.start()
    closer.join()
    SkywardBackend.unwind()
    assert not isinstance(asyncio.run(asyncio.to_thread(lambda: get_active_backend()[0])), SkywardBackend)
    assert type(asyncio.run(asyncio.to_thread(lambda: get_active_backend()[0]))) is LokyBackend


@pytest.mark.slow
def test_a_pool_without_the_plugin_is_told_of() -> None:
    with open_pool() as pool:
        (text,) = told(begin, in_thread=False)
        assert "plugins=[sky.plugins.joblib()]" in text
        assert told(begin, in_thread=False) == []
    with open_pool() as pool, sky.integrations.sklearn_backend(pool):
        assert isinstance(get_active_backend()[0], SkywardBackend)
    with open_pool() as pool:
        with sky.integrations.sklearn_backend(pool):
            pass
        assert isinstance(get_active_backend()[0], DefaultBackend)
        assert told(begin, in_thread=False) == [], "who names the pool in a part of its block means the rest as it is"


def test_a_default_of_the_users_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblib.parallel, "DEFAULT_BACKEND", "threading")
    with open_pool():
        assert joblib.parallel.DEFAULT_BACKEND == "threading"
        register_parallel_backend("theirs", LokyBackend, make_default=True)
    assert joblib.parallel.DEFAULT_BACKEND == "theirs"


@pytest.mark.slow
def test_joblib_may_be_imported_within_the_block() -> None:
    """Then the name is known, and the forgotten plugin is told of."""
    script = textwrap.dedent(
        """
        import sys, warnings
        import skyward as sky
        with sky.Compute(console=False):
            assert "joblib" not in sys.modules
            from joblib import Parallel, delayed, parallel_config
            with parallel_config(backend="skyward"):
                assert Parallel(n_jobs=-1)([delayed(abs)(-1)]) == [1]
            from joblib.parallel import get_active_backend, FallbackToBackend
            try:
                get_active_backend()[0].configure(n_jobs=2)
            except FallbackToBackend:
                pass
            assert not any("_Watch" in repr(finder) for finder in sys.meta_path)
        with sky.Compute(console=False):
            pass
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "no joblib plugin" in done.stderr

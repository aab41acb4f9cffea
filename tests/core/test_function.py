"""@sky.compute, the operators, gather and local."""

from __future__ import annotations

import asyncio
import functools
import operator
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.integrations.joblib import SkywardBackend
from tests.core.calls import Adder, add, apply, fail, meet, nap, node, outer, twice


@pytest.fixture(scope="module")
def pool() -> Iterator[sky.Compute]:
    with sky.Compute(nodes=3, concurrency=2, console=False) as pool:
        yield pool


def test_the_operators(pool: sky.Compute) -> None:
    """>> gives the result, > a future, @ one result of each node in node order, .local runs here."""
    assert add(1, b=2) >> pool == 3
    assert (add(1) > pool).result() == 11
    assert node() @ pool == pool.node_names == ["node-1", "node-2", "node-3"]
    assert add.local(2) == 12
    assert add.__name__ == "add"
    assert add.__doc__ == "Add two numbers."


def test_gathered_calls_run_in_parallel_and_keep_their_order(pool: sky.Compute, tmp_path: Path) -> None:
    """(f & g) >> pool and gather(f, g) >> pool, of any number."""
    assert (add(1) & add(2, 2)) >> pool == [11, 4]
    assert (add(1) & add(2) & node.__class__(len)("abc")) >> pool == [11, 12, 3]
    assert sky.gather(add(1), add(2) & add(3)) >> pool == [11, 12, 13]
    assert sky.gather(*[meet(str(tmp_path), name, 6) for name in "abcdef"]) >> pool == [*"abcdef"]
    assert [future.result() for future in sky.gather(add(1), add(2)) > pool] == [11, 12]


def test_a_failure_is_raised_at_once_and_cancels_the_others(pool: sky.Compute) -> None:
    """The error does not wait for the slowest call, which is stopped."""
    began = time.monotonic()
    with pytest.raises(ValueError, match="no"):
        _ = sky.gather(nap(60), fail("no"), nap(60)) >> pool
    assert time.monotonic() - began < 10
    assert add(1) >> pool == 11


WAYS: dict[str, Callable[[sky.Compute], Any]] = {
    "submit": lambda pool: pool.submit(add, 1).result(),
    "map": lambda pool: next(pool.map(add, [1])),
    "map in chunks": lambda pool: next(pool.map(add, [1], chunksize=2)),
    "partial": lambda pool: pool.submit(functools.partial(add, b=10), 1).result(),
    "partial in map": lambda pool: next(pool.map(functools.partial(functools.partial(add), b=10), [1])),
    "lambda": lambda pool: pool.submit(lambda: add(1)).result(),
    "argument": lambda pool: pool.submit(apply, add, 1).result(),
    "method": lambda pool: Adder(10).add(1) >> pool,
    "method in map": lambda pool: next(pool.map(Adder(10).add, [1])),
    "method of a class": lambda pool: pool.submit(Adder.add, Adder(10), 1).result(),
    "method by name": lambda pool: pool.submit(operator.methodcaller("add", 1), Adder(10)).result(),
    "static method": lambda pool: Adder(0).static(1) >> pool,
    "method here": lambda _: Adder(10).add.local(1),
    "asyncio": lambda pool: asyncio.run(in_a_loop(pool)),
    "another one's result": lambda pool: outer(1) >> pool,
    "decorated twice": lambda pool: pool.submit(sky.compute(add), 1).result(),
    "several as a result": lambda pool: pool.submit(lambda: add(1) & add(2)).result()[0],
    "joblib": lambda pool: Parallel(n_jobs=-1, backend=SkywardBackend(pool))(delayed(add)(i) for i in (1, 2))[0],
}


async def in_a_loop(pool: sky.Compute) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, add, 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_decorated_function_runs_wherever_a_function_does(pool: sky.Compute, way: str) -> None:
    """Nobody would run a call that came back as a task's result."""
    assert WAYS[way](pool) == 11


@pytest.mark.parametrize(
    "task",
    [
        lambda pool: pool.submit(abs, add(1)),
        lambda pool: add(add(1)) > pool,  # type: ignore[arg-type]
        lambda pool: pool.submit(sum, [1, add(1)]),
        lambda pool: pool.submit(add(1)),
        lambda pool: pool.submit(twice, add, 1),
    ],
    ids=["argument", "of a decorated one", "within an argument", "in the place of a function", "within a result"],
)
def test_a_call_that_has_not_run_goes_nowhere(pool: sky.Compute, task: Callable[[sky.Compute], Any]) -> None:
    """Neither to a node nor back: it would arrive unrun, which nobody means."""
    with pytest.raises(sky.PayloadError, match=r"this call of add has not run: .* pool\.submit\(add, "):
        task(pool).result(30)


def test_a_node_names_a_chunk_after_its_function(pool: sky.Compute) -> None:
    with pytest.raises(sky.WorkerCrashed, match=r"_exit \(a batch of 2\)"):
        list(pool.map(os._exit, [1, 1], chunksize=2))


@pytest.mark.slow
def test_wrong_use_is_an_error() -> None:
    """No pool, a chained comparison, gather of something else, decorating something else."""
    with pytest.raises(sky.ConfigError, match=r"runs on a sky\.Compute"):
        _ = add(1) >> 5
    with pytest.raises(sky.ConfigError, match="has no truth value"):
        _ = 1 if add(1) else 2
    with pytest.raises(sky.ConfigError, match="gather takes calls"):
        sky.gather(add, 3)  # type: ignore[arg-type]
    with pytest.raises(sky.ConfigError, match="decorates functions"):
        sky.compute(3)  # type: ignore[arg-type]
    with pytest.raises(sky.PoolNotActive):
        _ = add(1) >> sky.Compute()


@pytest.mark.slow
def test_an_argument_that_does_not_pickle(pool: sky.Compute) -> None:
    """The pool goes on after it."""
    with pytest.raises(sky.PayloadError, match=r"_thread\.lock"):
        _ = add(threading.Lock()) >> pool  # type: ignore[arg-type]
    assert add(1) >> pool == 11

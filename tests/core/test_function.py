"""@sky.compute, the operators, gather and local."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

import skyward as sky


@pytest.fixture(scope="module")
def pool() -> Iterator[sky.Compute]:
    with sky.Compute(nodes=3, concurrency=2, console=False) as pool:
        yield pool


@sky.compute
def add(a: int, b: int = 10) -> int:
    """Add two numbers."""
    return a + b


@sky.compute
def node() -> str:
    return os.environ["SKYWARD_NODE"]


@sky.compute
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@sky.compute
def fail(text: str) -> None:
    raise ValueError(text)


def test_the_operators(pool: sky.Compute) -> None:
    """>> gives the result, > a future, @ one result of each node in node order, .local runs here."""
    assert add(1, b=2) >> pool == 3
    assert (add(1) > pool).result() == 11
    assert node() @ pool == pool.node_names == ["node-1", "node-2", "node-3"]
    assert add.local(2) == 12
    assert add.__name__ == "add"
    assert add.__doc__ == "Add two numbers."


def test_gathered_calls_run_in_parallel_and_keep_their_order(pool: sky.Compute) -> None:
    """(f & g) >> pool and gather(f, g) >> pool, of any number."""
    assert (add(1) & add(2, 2)) >> pool == [11, 4]
    assert (add(1) & add(2) & node.__class__(len)("abc")) >> pool == [11, 12, 3]
    assert sky.gather(add(1), add(2) & add(3)) >> pool == [11, 12, 13]
    began = time.monotonic()
    assert sky.gather(*[nap(0.5) for _ in range(6)]) >> pool == [0.5] * 6
    assert time.monotonic() - began < 2.5
    assert [future.result() for future in sky.gather(add(1), add(2)) > pool] == [11, 12]


def test_a_failure_comes_at_once_and_ends_the_others(pool: sky.Compute) -> None:
    """The error does not wait for the slowest call, which is stopped."""
    began = time.monotonic()
    with pytest.raises(ValueError, match="no"):
        _ = sky.gather(nap(60), fail("no"), nap(60)) >> pool
    assert time.monotonic() - began < 10
    assert add(1) >> pool == 11


def test_wrong_use_is_told() -> None:
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


def test_an_argument_that_does_not_pickle(pool: sky.Compute) -> None:
    """The pool goes on after it."""
    with pytest.raises(sky.PayloadError, match=r"_thread\.lock"):
        _ = add(threading.Lock()) >> pool  # type: ignore[arg-type]
    assert add(1) >> pool == 11

"""A user's program whose every type is known. Read by tests/test_types.py, not run."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
from collections.abc import Iterator
from typing import assert_type

import skyward as sky
from skyward.core.tasks.futures import TaskFuture


def half(x: int) -> float:
    return x / 2


def label(x: int, name: str = "x", *, upper: bool = False) -> str:
    return f"{name}{x}{upper}"


def three(x: int, name: str, rate: float) -> bytes:
    return f"{x}{name}{rate}".encode()


def five(a: int, b: int, c: int, d: int, e: int) -> int:
    return a + b + c + d + e


@sky.compute
def square(x: int) -> int:
    return x * x


@sky.compute
def name(x: str, times: int = 1) -> str:
    return x * times


class Model:
    @sky.compute
    def fit(self, rows: int, name: str = "x") -> float:
        return rows / len(name)


def methods(pool: sky.Compute, model: Model) -> None:
    assert_type(model.fit(3) >> pool, float)
    assert_type(pool.submit(Model.fit, model, 3).result(), float)
    assert_type(list(pool.map(model.fit, [1, 2])), list[float])


def plain_functions(pool: sky.Compute) -> None:
    future = pool.submit(half, 3)
    assert_type(future.result(), float)
    standard: concurrent.futures.Future[float] = future
    standard.add_done_callback(print)
    assert_type(pool.submit(label, 1, upper=True).result(timeout=3), str)
    assert_type(pool.submit(label, 1, "y").cancel(), bool)
    assert_type(pool.submit(print, "x", end="").result(), None)
    assert_type(pool.submit(lambda: 3).result(), int)
    assert_type(pool.submit(functools.partial(label, name="y"), 1).result(), str)


def maps(pool: sky.Compute) -> None:
    assert_type(pool.map(half, [1, 2]), Iterator[float])
    assert_type(list(pool.map(label, range(3))), list[str])
    assert_type(list(pool.map(label, {1, 2}, ("a", "b"), chunksize=4, timeout=2.5)), list[str])
    assert_type(list(pool.map(three, [1], ["a"], [2.5])), list[bytes])
    assert_type(list(pool.map(five, [1], [2], [3], [4], [5])), list[int])
    assert_type(list(pool.map(lambda x: x + 1, [1])), list[int])
    assert_type(list(pool.map(square, [1, 2])), list[int])
    assert_type(list(pool.map(name, ["a"], [2], chunksize=2)), list[str])


def decorated_functions(pool: sky.Compute) -> None:
    assert_type(square(3) >> pool, int)
    assert_type(square(3) > pool, TaskFuture[int])
    assert_type((square(3) > pool).result(), int)
    assert_type(square(3) @ pool, list[int])
    assert_type(square.local(3), int)
    assert_type(name("x", times=2) >> pool, str)
    assert_type(pool.submit(square, 3).result(), int)
    assert_type(pool.submit(name, "x", times=2).result(), str)


def several(pool: sky.Compute) -> None:
    number, text = (square(1) & name("x")) >> pool
    assert_type(number, int)
    assert_type(text, str)
    assert_type((square(1) & name("x") & square(2)) >> pool, tuple[int, str, int])
    assert_type((square(1) & (name("x") & square(2))) >> pool, tuple[int, str, int])
    assert_type(((square(1) & name("x")) & (name("y") & square(2))) >> pool, tuple[int, str, str, int])
    assert_type(sky.gather(square(1), name("x")) >> pool, tuple[int, str])
    assert_type(
        sky.gather(name("x"), square(1), name("y"), square(2), name("z")) >> pool, tuple[str, int, str, int, str]
    )
    assert_type(sky.gather(*[square(i) for i in range(9)]) >> pool, list[int])
    first, second = (square(1) & name("x")) > pool
    assert_type(first.result(), int)
    assert_type(second.result(), str)
    assert_type([future.result() for future in sky.gather(*map(square, range(9))) > pool], list[int])


class Announced(sky.Plugin):
    def around_client(self, pool: sky.OpenPool) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext(pool.name)


def main() -> None:
    with sky.Compute(plugins=[Announced()]):
        pass
    with sky.Compute(nodes=2, worker=sky.Worker(concurrency=2, executor="thread")) as pool:
        plain_functions(pool)
    with sky.ComputePool(provider=sky.Local(), concurrency=2) as other:
        maps(other)
    executor: concurrent.futures.Executor = sky.Compute().start()
    executor.shutdown(wait=False, cancel_futures=True)

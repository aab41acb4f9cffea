"""A user's program with a mistake in each line that is marked. Read by tests/test_types.py, not run."""

from __future__ import annotations

import skyward as sky
from tests.typed.right import five, half, label, name, square, three


def plain_functions(pool: sky.Compute) -> None:
    pool.submit(half, "text")  # wrong
    pool.submit(half)  # wrong
    pool.submit(half, 1, 2)  # wrong
    pool.submit(label, 1, upper="yes")  # wrong
    pool.submit(label, 1, colour="red")  # wrong
    pool.submit(3)  # wrong
    text: str = pool.submit(half, 1).result()  # wrong
    print(text, pool.submit(half, 1).results())  # wrong


def maps(pool: sky.Compute) -> None:
    pool.map(half, ["text"])  # wrong
    pool.map(half, 3)  # wrong
    pool.map(half, [1], [2])  # wrong
    pool.map(label, [1], [2])  # wrong
    pool.map(three, [1], ["a"])  # wrong
    pool.map(three, [1], ["a"], ["b"])  # wrong
    pool.map(half, [1], chunksize="many")  # wrong
    pool.map(half, [1], timeout="soon")  # wrong
    pool.map(square, ["text"])  # wrong
    pool.map(name, ["x"], ["y"])  # wrong
    texts: list[str] = list(pool.map(half, [1]))  # wrong
    numbers: list[str] = list(pool.map(five, [1], [2], [3], [4], [5]))  # wrong
    print(texts, numbers)


def decorated_functions(pool: sky.Compute) -> None:
    square("text")  # wrong
    square.local("text")  # wrong
    pool.submit(square, "text")  # wrong
    pool.submit(name, "x", times="two")  # wrong
    text: str = square(1) >> pool  # wrong
    texts: list[str] = square(1) @ pool  # wrong
    done: str = (square(1) > pool).result()  # wrong
    print(text, texts, done)
    print(square(1) >> 3)  # wrong
    print(square(1) @ "pool")  # wrong
    print(square(1) + 1)  # wrong


def several(pool: sky.Compute) -> None:
    text, number = (square(1) & name("x")) >> pool
    print(text.upper())  # wrong
    print(number + 1)  # wrong
    print((square(1) & 3) >> pool)  # wrong
    sky.gather(square(1), square)  # wrong
    results: list[str] = sky.gather(*[square(i) for i in range(9)]) >> pool  # wrong
    first, second = (square(1) & name("x")) > pool
    print(results, first.result().upper())  # wrong
    print(second.result() + 1)  # wrong


class Model:
    @sky.compute
    def fit(self, rows: int) -> float:
        return rows / 2


def methods(pool: sky.Compute, model: Model) -> None:
    model.fit("3") >> pool  # wrong
    text: str = model.fit(3) >> pool  # wrong
    print(text, model.fit(3, 4))  # wrong


def pools() -> None:
    sky.Compute(nodes="two")  # wrong
    sky.Worker(executor="fibre")  # wrong

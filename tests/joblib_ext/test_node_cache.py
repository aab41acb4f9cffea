"""Cached functions inside tasks use the driver's cache: with and without sight of its folder."""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import Memory, Parallel, delayed, parallel_config
from joblib.memory import FileSystemStoreBackend, MemorizedResult

import skyward as sky
from skyward.joblib_ext.cache_desk import desk_of
from tests.joblib_ext.conftest import VERSION
from tests.joblib_ext.counted import Counted, Model, wait_for
from tests.lazily import Lazy

sk = Lazy("tests.estimators")

if VERSION < (1, 4):
    pytest.skip("joblib 1.4 has what the lookup needs", allow_module_level=True)


@pytest.fixture(params=["the folder", "the driver"], autouse=True)
def _way(request: pytest.FixtureRequest, pool: sky.Compute) -> Iterator[None]:
    """Nodes of this machine can do as those elsewhere: ask the driver for everything."""
    pool.dispatcher.context.shared = request.param == "the folder"
    request.getfixturevalue("counted")
    yield
    pool.dispatcher.context.shared = True


def test_a_nested_call_is_a_hit_everywhere(pool: sky.Compute, counted: Counted) -> None:
    square = counted.square()

    def nested(x: int) -> list[int]:
        return [square(x), square(x), square(x + 100)]

    square(1)
    for _ in range(2):
        assert list(pool.map(nested, range(4))) == [[x * x, x * x, (x + 100) ** 2] for x in range(4)]
    assert len(counted.ran) == 8
    assert [square(x) for x in range(4)] == [x * x for x in range(4)]
    assert pool.submit(square, 103).done()
    assert len(counted.ran) == 8
    metadata = square.store_backend.get_metadata([square.func_id, square._get_args_id(102)])
    assert metadata["input_args"] == {"x": "102", "label": "'square'"}
    assert metadata["duration"] > 0


def test_equal_nested_calls_are_computed_once(pool: sky.Compute, counted: Counted) -> None:
    log, go = counted.log, counted.folder / "go"

    @counted.memory.cache
    def slow(x: int) -> int:
        with log.open("a") as file:
            file.write("ran\n")
        wait_for(go)
        return x

    def nested(x: int) -> int:
        return slow(x) + 1

    futures = [pool.submit(nested, 5) for _ in range(4)]
    while not counted.ran:
        time.sleep(0.001)
    direct = pool.submit(slow, 5)
    go.touch()
    assert [future.result() for future in futures] == [6] * 4
    assert direct.result() == 5
    assert len(counted.ran) == 1


def test_a_nested_call_waits_for_one_that_was_submitted(pool: sky.Compute, counted: Counted) -> None:
    log, go = counted.log, counted.folder / "go"

    @counted.memory.cache
    def slow(x: int) -> int:
        with log.open("a") as file:
            file.write("ran\n")
        wait_for(go)
        return x

    direct = pool.submit(slow, 5)
    while not direct.began:
        time.sleep(0.001)
    nested = pool.submit(lambda: slow(5) + 1)
    while not nested.began:
        time.sleep(0.001)
    go.touch()
    assert (direct.result(), nested.result()) == (5, 6)
    assert len(counted.ran) == 1


@pytest.mark.slow
def test_the_end_of_a_process_gives_up_its_turn(counted: Counted) -> None:
    log = counted.log

    @counted.memory.cache
    def dies_first(x: int) -> int:
        import os

        with log.open("a") as file:
            file.write("ran\n")
        if len(log.read_text().split()) == 1:
            time.sleep(0.3)
            os._exit(1)
        return x

    with sky.Compute(worker=sky.Worker(concurrency=2, attempts=1), console=False) as pool:
        futures = [pool.submit(lambda: dies_first(3)) for _ in range(2)]
        outcomes = [future.exception() or future.result() for future in futures]
    assert sorted(type(one).__name__ for one in outcomes) == ["WorkerCrashed", "int"]
    assert len(counted.ran) == 2


def test_failures_and_full_disks(pool: sky.Compute, counted: Counted) -> None:
    @counted.memory.cache
    def fails(x: int) -> int:
        raise KeyError(x)

    for _ in range(2):
        with pytest.raises(KeyError):
            pool.submit(lambda: fails(3)).result()
    square = counted.square()
    pool.submit(lambda: square(9)).result()
    folder = counted.folder / "cache"
    for path in folder.rglob("output.pkl"):
        path.write_bytes(b"broken")
    assert pool.submit(lambda: square(9)).result() == 81
    assert len(counted.ran) == 2


def test_arrays_maps_and_references(pool: sky.Compute, counted: Counted, tmp_path: Path) -> None:
    mapped = counted.square(Memory(str(tmp_path / "maps"), verbose=0, mmap_mode="r"))
    large = np.arange(400_000.0)

    def nested(array: Any) -> tuple[str, float]:
        result = mapped(array)
        return type(result).__name__, float(result.sum())

    assert list(pool.map(nested, [large] * 3)) == [("memmap", float((large**2).sum()))] * 3
    assert len(counted.ran) == 1
    assert pool.submit(mapped, large).done(), "a map that an array was sent as counts as the array"
    plain = counted.square(Memory(str(tmp_path / "packed"), verbose=0, compress=3))
    np.testing.assert_array_equal(pool.submit(lambda: plain(large)).result(), large**2)
    np.testing.assert_array_equal(pool.submit(lambda: plain(large)).result(), large**2)
    assert len(counted.ran) == 2
    reference = pool.submit(lambda: plain.call_and_shelve(large)).result()
    assert isinstance(reference, MemorizedResult)
    assert type(reference.store_backend) is FileSystemStoreBackend
    np.testing.assert_array_equal(reference.get(), large**2)
    assert pool.submit(lambda: float(reference.get()[3])).result() == 9.0


def test_a_large_result_goes_to_each_node_once(pool: sky.Compute, counted: Counted) -> None:
    """However many tasks there want it, as a copy or as a map; and what replaces it goes there, too."""
    context = pool.dispatcher.context
    large = counted.square()
    for number in (1.0, 2.0):
        array = np.full(200_000, number)
        large(array)
        sent = desk_of(context).sent
        tasks = [pool.submit(lambda x: float(large(x).sum()), array) for _ in range(12)]
        assert {task.result() for task in tasks} == {number * number * 200_000}
        assert desk_of(context).sent - sent <= (0 if context.shared else 2)
    assert len(counted.ran) == 2
    large.clear(warn=False)
    assert pool.submit(lambda: float(large(np.full(200_000, 2.0)).sum())).result() == 800_000.0
    assert len(counted.ran) == 3


def test_all_of_joblibs_interface_works_in_a_task(pool: sky.Compute, counted: Counted) -> None:
    square = counted.square(verbose=0)

    def nested() -> list[Any]:
        said: list[Any] = [square.check_call_in_cache(2), square(2), square.check_call_in_cache(2)]
        said += [square.call(2)[0], square.call_and_shelve(2).get()]
        square.call_and_shelve(2).clear()
        said.append(square.check_call_in_cache(2))
        square(2)
        square.clear(warn=False)
        said.append(square.check_call_in_cache(2))
        return said

    assert pool.submit(nested).result() == [False, 4, True, 4, 4, False, False]
    memory = counted.memory

    def whole() -> list[Any]:
        again = memory.cache(square.func)
        again(5)
        memory.reduce_size(items_limit=0)
        said = [again.check_call_in_cache(5)]
        again(5)
        memory.clear(warn=False)
        return [*said, again.check_call_in_cache(5), memory.eval(square.func, 6)]

    assert pool.submit(whole).result() == [False, False, 36]
    assert type(pool.submit(lambda: memory).result().store_backend) is FileSystemStoreBackend
    old = counted.square(verbose=0, cache_validation_callback=lambda _: False)
    ran = len(counted.ran)
    assert [pool.submit(lambda: old(6)).result() for _ in range(3)] == [36] * 3
    assert len(counted.ran) == ran + 3


def test_methods_inside_tasks(pool: sky.Compute, counted: Counted) -> None:
    double = Model(counted.memory, 2)
    assert pool.submit(lambda: double.times(21)).result() == 42
    assert double.times.check_call_in_cache(21), "the object counts as the same on both sides"
    assert pool.submit(double.times, 21).done()
    assert Parallel(n_jobs=2)(delayed(lambda x: double.times(x) + 0)(x) for x in (21, 22)) == [42, 44]


def test_a_module_that_was_changed_here_and_not_there_is_an_error(
    pool: sky.Compute, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results would be kept as those of the new source."""
    name = f"edited_{counted.folder.name}"
    path = counted.folder / f"{name}.py"
    monkeypatch.syspath_prepend(str(counted.folder))
    path.write_text("def f(x):\n    return x\n", encoding="utf-8")
    module = importlib.import_module(name)
    for _ in range(8):
        assert pool.submit(counted.memory.cache(module.f), _).result() == _
    path.write_text("def f(x):\n    return x + 1000000\n", encoding="utf-8")
    importlib.invalidate_caches()
    del sys.modules[name]
    changed = counted.memory.cache(importlib.import_module(name).f)
    for function in (changed, lambda x: changed(x) + 0):
        outcome = pool.submit(function, 1)
        error = outcome.exception()  # but for a slot that had not imported it
        assert "f has a different source in this task" in str(error) if error else outcome.result() == 1000001
    assert changed(2) == 1000002
    del sys.modules[name]


MODULE = """
from joblib import Memory

memory = Memory({folder!r}, verbose=0)


@memory.cache
def square(x):
    with open({log!r}, "a") as file:
        file.write("ran\\n")
    return x * x


def nested(x):
    return square(x) + 1
"""


def test_functions_of_modules_use_the_drivers_cache(
    pool: sky.Compute, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also though each node makes a `Memory` of its own when it imports the module."""
    name = f"caches_{counted.folder.name}"
    path = counted.folder / f"{name}.py"
    monkeypatch.syspath_prepend(str(counted.folder))
    path.write_text(MODULE.format(folder="elsewhere", log=str(counted.log)), encoding="utf-8")
    module = importlib.import_module(name)
    module.square.store_backend = counted.memory.store_backend
    monkeypatch.chdir(counted.folder)
    assert pool.submit(os.getcwd).result() == str(counted.folder)
    assert module.nested(3) == 10
    assert list(pool.map(module.nested, [3, 4, 3, 4, 5])) == [10, 17, 10, 17, 26]
    assert len(counted.ran) == 3
    assert module.square.check_call_in_cache(5)
    assert pool.submit(module.square.check_call_in_cache, 6).result() is False
    assert Parallel(n_jobs=2)(delayed(module.nested)(x) for x in (5, 6)) == [26, 37]
    assert len(counted.ran) == 4
    del sys.modules[name], module  # what is reloaded here, though from the same file, is sent again
    module = importlib.import_module(name)
    module.square.store_backend = counted.memory.store_backend
    assert list(pool.map(module.nested, [6, 7])) == [37, 50]
    assert len(counted.ran) == 5
    del sys.modules[name]


def test_recursion(pool: sky.Compute, counted: Counted) -> None:
    log = counted.log
    space: dict[str, Any] = {"__name__": "__main__"}

    def fibonacci(n: int) -> int:
        with log.open("a") as file:
            file.write("ran\n")
        return n if n < 2 else space["f"](n - 1) + space["f"](n - 2)

    space["f"] = counted.memory.cache(fibonacci)
    assert pool.submit(space["f"], 12).result() == 144
    assert len(counted.ran) == 13
    assert space["f"](11) == 89
    assert len(counted.ran) == 13


@pytest.mark.slow
def test_calls_that_wait_for_each_other_are_computed(pool: sky.Compute, counted: Counted) -> None:
    """As each call would be, if the other one were not there."""
    folder = str(counted.folder)

    @counted.memory.cache(ignore=["depth"])
    def one(x: int, depth: int) -> int:
        meet(folder, "one", "two", depth)
        return x if depth == 0 else two(x, depth - 1) + 1

    @counted.memory.cache(ignore=["depth"])
    def two(x: int, depth: int) -> int:
        meet(folder, "two", "one", depth)
        return x if depth == 0 else one(x, depth - 1) + 1

    futures = [pool.submit(lambda: one(10, 1)), pool.submit(lambda: two(10, 1))]
    assert {future.result(30) for future in futures} <= {10, 11, 12}


def meet(folder: str, me: str, other: str, depth: int) -> None:
    """Wait until the other one is computing too."""
    if depth == 1:
        (Path(folder) / me).touch()
        wait_for(Path(folder) / other)


def test_a_task_whose_driver_does_not_answer_computes(pool: sky.Compute, counted: Counted) -> None:
    """A token that is unknown, as after the pool has ended, costs a warning."""
    square = counted.square()

    def nested() -> tuple[int, list[str]]:
        square.store_backend.grant.token = "0" * 32
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return square(3), [str(one.message) for one in caught]

    result, said = pool.submit(nested).result()
    assert result == 9
    assert any("the token or the request is unknown" in text for text in said)


@pytest.mark.slow
def test_a_pipelines_memory_fits_a_step_once_for_each_fold(pool: sky.Compute, counted: Counted) -> None:
    random = np.random.default_rng(0)
    X, y = random.normal(size=(60, 3)), random.integers(0, 2, 60)
    steps = [("scale", sk.Scaler(str(counted.log))), ("tree", sk.DecisionTreeClassifier(random_state=0))]
    search = sk.GridSearchCV(
        sk.Pipeline(steps, memory=counted.memory), {"tree__max_depth": [1, 2, 3, 4, 5]}, cv=3, n_jobs=-1, refit=False
    )
    with parallel_config(backend="skyward"):
        search.fit(X, y)
        scores = search.cv_results_["mean_test_score"]
        assert len(counted.ran) == 3
        search.fit(X, y)
        assert len(counted.ran) == 3
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], scores)
    fitted = pool.submit(lambda: search.best_estimator_ if search.refit else search.estimator.fit(X, y)).result()
    assert type(fitted.memory.store_backend) is FileSystemStoreBackend
    assert len(counted.ran) == 4
    search.estimator.fit(X, y)
    assert len(counted.ran) == 4, "what a task has fitted is a hit here"

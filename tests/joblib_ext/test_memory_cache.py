"""Functions that `joblib.Memory` caches, called in a pool: looked up here, computed once, kept as joblib keeps them."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import Memory, Parallel, delayed
from joblib.memory import MemorizedResult, NotMemorizedResult

import skyward as sky
from skyward.core.events import TasksQueued
from skyward.core.tasks.kept_calls import is_kept
from skyward.joblib_ext.memory_cache import CachedCall, OneOfBatch, cached_call
from tests.joblib_ext.conftest import VERSION
from tests.joblib_ext.counted import Counted, Model, wait_for
from tests.lab import eventually

if VERSION < (1, 4):
    pytest.skip("joblib 1.4 has what the lookup needs", allow_module_level=True)


def test_a_result_is_computed_once_and_then_found(pool: sky.Compute, counted: Counted) -> None:
    square = counted.square()
    for _ in range(2):
        assert Parallel(n_jobs=-1)(delayed(square)(i) for i in range(6)) == [i * i for i in range(6)]
        assert list(pool.map(square, range(6), chunksize=4)) == [i * i for i in range(6)]
        assert pool.submit(square, 5).result() == 25
    assert len(counted.ran) == 6


def test_what_is_found_is_not_sent(pool: sky.Compute, counted: Counted) -> None:
    square = counted.square()
    square(3)
    future = pool.submit(square, 3)
    assert future.done()
    assert (future.result(), future.seconds) == (9, None)
    assert pool.submit(sky.compute(square), 3).result() == 9
    assert sky.compute(square)(3) >> pool == 9
    assert len(counted.ran) == 1


def test_the_cache_is_the_one_of_plain_joblib(pool: sky.Compute, counted: Counted, tmp_path: Path) -> None:
    """Bit for bit, but for the times."""
    values: list[Any] = [3, 2.5, np.arange(12.0).reshape(3, 4), np.asfortranarray(np.ones((300, 300))), True]
    for compress in (False, 3):
        ours = Memory(str(tmp_path / f"ours{compress}"), verbose=0, compress=compress)
        theirs = Memory(str(tmp_path / f"theirs{compress}"), verbose=0, compress=compress)
        Parallel(n_jobs=-1)(delayed(counted.square(ours))(value, label="b") for value in values)
        for value in values:
            counted.square(theirs)(value, label="b")
        here, there = _files(ours), _files(theirs)
        assert here.keys() == there.keys()
        assert len(here) == 1 + 2 * len(values)
        for name, data in here.items():
            if name.endswith("metadata.json"):
                a, b = json.loads(data), json.loads(there[name])
                assert a.pop("duration") >= 0
                assert abs(a.pop("time") - b["time"]) < 60
                assert a.items() == {key: b[key] for key in b if key not in ("duration", "time")}.items()
            else:
                assert data == there[name], name
        ran = len(counted.ran)
        for value in values:
            np.testing.assert_array_equal(counted.square(ours)(value, label="b"), value * value)
            np.testing.assert_array_equal(pool.submit(counted.square(theirs), value, label="b").result(), value * value)
        assert len(counted.ran) == ran


def _files(memory: Memory) -> dict[str, bytes]:
    root = Path(memory.store_backend.location)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_equal_calls_are_computed_once_at_a_time(pool: sky.Compute, counted: Counted) -> None:
    square = counted.square()
    assert Parallel(n_jobs=-1, batch_size=1)(delayed(square)(i % 3) for i in range(60)) == [
        (i % 3) ** 2 for i in range(60)
    ]
    assert len(counted.ran) == 3


def test_a_call_waits_for_an_equal_one_and_goes_on_if_that_fails(pool: sky.Compute, counted: Counted) -> None:
    log, go = counted.log, counted.folder / "go"

    @counted.memory.cache
    def fails_first(x: int) -> int:
        with log.open("a") as file:
            file.write("ran\n")
        wait_for(go)
        if len(log.read_text().split()) == 1:
            raise ValueError(x)
        return x

    futures = [pool.submit(fails_first, 7) for _ in range(4)]
    other = pool.submit(fails_first, 8)
    while len(counted.ran) < 2:
        assert not any(future.done() for future in (*futures, other))
    assert pool.submit(abs, -1).result() == 1, "those that wait take no slot"
    go.touch()
    assert {other.result(), *(future.result() for future in futures[1:])} == {7, 8}
    assert futures[0].exception() is None or isinstance(futures[0].exception(), ValueError)


@pytest.mark.slow
def test_the_death_of_a_process_lets_the_next_one_go_on(counted: Counted) -> None:
    log = counted.log

    @counted.memory.cache
    def dies_first(x: int) -> int:
        with log.open("a") as file:
            file.write("ran\n")
        if len(log.read_text().split()) == 1:
            os._exit(1)
        return x

    with sky.Compute(worker=sky.Worker(attempts=1), console=False) as pool:
        first, second, third = (pool.submit(dies_first, 7) for _ in range(3))
        with pytest.raises(sky.WorkerCrashed):
            first.result()
        assert (second.result(), third.result()) == (7, 7)
    assert len(counted.ran) == 2


def test_one_that_waits_can_be_cancelled(pool: sky.Compute, counted: Counted) -> None:
    go = counted.folder / "go"

    @counted.memory.cache
    def waits(x: int) -> int:
        wait_for(go)
        return x

    first, second, third, fourth = (pool.submit(waits, 1) for _ in range(4))
    assert second.cancel()
    assert first.cancel(), "it may be running"
    go.touch()
    assert (third.result(), fourth.result()) == (1, 1)
    assert first.cancelled()
    assert second.cancelled()


@pytest.mark.slow
@pytest.mark.parametrize("cancel", [False, True])
def test_the_end_of_a_pool_leaves_nobody_waiting(counted: Counted, cancel: bool) -> None:
    go = counted.folder / "go"

    @counted.memory.cache
    def waits(x: int) -> int:
        wait_for(go)
        return x

    pool = sky.Compute(console=False).start()
    futures = [pool.submit(waits, 1) for _ in range(3)]
    if not cancel:
        go.touch()
    pool.close(cancel=cancel)
    assert all(future.done() for future in futures)
    assert [future.cancelled() for future in futures] == [cancel] * 3


def test_arguments_are_those_at_the_time_of_the_call(pool: sky.Compute, counted: Counted) -> None:
    go = counted.folder / "go"

    @counted.memory.cache(ignore=["wait"])
    def total(x: Any, wait: bool) -> Any:
        if wait:
            wait_for(go)
            raise ValueError("the first one fails")
        return x.sum()

    array = np.ones(5)
    first = pool.submit(total, array, wait=True)
    second = pool.submit(total, array, wait=False)
    array[:] = 3
    go.touch()
    with pytest.raises(ValueError, match="the first one fails"):
        first.result()
    assert second.result() == 5
    assert total(np.ones(5), wait=False) == 5
    assert pool.submit(total, array, wait=False).result() == 15


def test_options_mean_what_they_mean_to_joblib(pool: sky.Compute, counted: Counted, tmp_path: Path) -> None:
    ignoring = counted.square(ignore=["label"])
    assert pool.submit(ignoring, 2, label="a").result() == 4
    assert pool.submit(ignoring, 2, label="b").result() == 4
    assert counted.ran == ["a"]
    mapped = counted.square(Memory(str(tmp_path / "maps"), verbose=0, mmap_mode="r"))
    for result in Parallel(n_jobs=2)(delayed(mapped)(np.ones(4)) for _ in range(2)):
        assert isinstance(result, np.memmap)
        assert result.mode == "r"
    seen: list[dict[str, Any]] = []
    old = counted.square(Memory(str(tmp_path / "old"), verbose=0), cache_validation_callback=seen.append)
    assert [pool.submit(old, 5).result() for _ in range(3)] == [25, 25, 25]
    assert [one["input_args"] for one in seen] == [{"x": "5", "label": "'square'"}] * 2
    assert len(counted.ran) == 5


def test_verbose_functions_print_as_with_joblib(
    pool: sky.Compute, counted: Counted, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loud = counted.square(Memory(str(tmp_path / "loud"), verbose=5))
    assert pool.submit(loud, 4, label="loud").result() == 16
    assert pool.submit(loud, 4, label="loud").result() == 16
    texts = ("[Memory] Calling", "square(4, label='loud')", "square - ", "[Memory]", "cache loaded")
    printed = []

    def is_all_printed() -> bool:  # a thread of the console's own prints
        printed.extend(capfd.readouterr())
        return all(text in "".join(printed) for text in texts)

    eventually(is_all_printed, 30, f"all of {texts}")


def test_methods_and_references_to_results(pool: sky.Compute, counted: Counted) -> None:
    double, triple = Model(counted.memory, 2), Model(counted.memory, 3)
    assert pool.submit(double.times, 5).result() == 10
    assert Parallel(n_jobs=2)(delayed(model.times)(5) for model in (double, triple)) == [10, 15]
    assert triple.times.check_call_in_cache(5)
    square = counted.square()
    first, second = (pool.submit(square.call_and_shelve, 6).result() for _ in range(2))
    assert isinstance(first, MemorizedResult)
    assert (first.get(), second.get(), square(6)) == (36, 36, 36)
    assert Parallel(n_jobs=2)(delayed(square.call_and_shelve)(6) for _ in range(2))[0].get() == 36
    assert len(counted.ran) == 1
    assert pool.submit("a-b".split, "-").result() == ["a", "b"], "other methods are no concern of ours"


def test_clearing_and_new_source_make_it_compute_again(pool: sky.Compute, counted: Counted) -> None:
    square = counted.square()
    assert pool.submit(square, 2).result() == 4
    square.clear(warn=False)
    assert pool.submit(square, 2).result() == 4
    counted.memory.clear(warn=False)
    assert pool.submit(square, 2).result() == 4
    counted.memory.reduce_size(items_limit=0)
    assert pool.submit(square, 2).result() == 4
    assert len(counted.ran) == 4


def version(folder: Path, body: str) -> Callable[[int], int]:
    """A function of the same name with another source, as from an edited file."""
    path = folder / "edited.py"
    path.write_text(f"def edited(x):\n    {body}\n", encoding="utf-8")
    space: dict[str, Any] = {"__name__": "edited"}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), space)
    made: Callable[[int], int] = space["edited"]
    return made


def test_a_result_of_another_source_is_never_returned(pool: sky.Compute, counted: Counted) -> None:
    go = counted.folder / "go"
    slow = counted.memory.cache(
        version(counted.folder, f"while not __import__('os').path.exists({str(go)!r}): pass\n    return -x")
    )
    old = pool.submit(slow, 5)
    new = counted.memory.cache(version(counted.folder, "return x + 1"))
    assert pool.submit(new, 4).result() == 5
    assert joblib.Memory(str(counted.folder / "cache"), verbose=0).cache(new.func).check_call_in_cache(4)
    waits = pool.submit(new, 5)
    go.touch()
    assert (old.result(), waits.result()) == (-5, 6)
    assert [pool.submit(new, x).result() for x in (4, 5)] == [5, 6]
    assert pool.submit(slow, 4).result() == -4, "joblib would have returned the result of the new one"


def test_a_full_disk_costs_a_warning_and_no_result(
    pool: sky.Compute, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    square = counted.square()
    store = square.store_backend

    def full(name: str, mode: str) -> Any:
        if "w" in mode:
            raise OSError(28, "No space left on device", name)
        return open(name, mode)  # noqa: PTH123

    assert pool.submit(square, 1).result() == 1
    monkeypatch.setattr(store, "_open_item", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        futures = [pool.submit(square, 3), pool.submit(square, 3), pool.submit(square.call_and_shelve, 4)]
        assert [future.result() for future in futures[:2]] == [9, 9]
        shelf = futures[2].result()
    assert isinstance(shelf, NotMemorizedResult)
    assert shelf.get() == 16
    assert any("No space left" in str(one.message) for one in caught)
    monkeypatch.undo()
    assert pool.submit(square, 3).result() == 9


def test_wrong_arguments_are_an_error_of_the_call(pool: sky.Compute, counted: Counted) -> None:
    square = counted.square()
    with pytest.raises(ValueError, match="Wrong number of arguments"):
        pool.submit(square).result()
    with pytest.raises(ValueError, match="Wrong number of arguments"):
        Parallel(n_jobs=2)(delayed(square)() for _ in range(2))
    failing = counted.square(cache_validation_callback=lambda _: 1 / 0)
    assert pool.submit(failing, 1).result() == 1
    with pytest.raises(ZeroDivisionError):
        pool.submit(failing, 1).result()


def test_broken_files_are_computed_again(pool: sky.Compute, counted: Counted) -> None:
    square = counted.square()
    assert pool.submit(square, 3).result() == 9
    for path in (counted.folder / "cache").rglob("output.pkl"):
        path.write_bytes(b"broken")
    assert pool.submit(square, 3).result() == 9
    assert len(counted.ran) == 2
    assert pool.submit(square, 3).result() == 9
    assert len(counted.ran) == 2


def test_batches_of_cached_and_other_calls(pool: sky.Compute, counted: Counted) -> None:
    square = counted.square()
    calls = [delayed(square)(i) if i % 2 else delayed(abs)(-i) for i in range(20)]
    assert Parallel(n_jobs=-1, batch_size=7)(calls) == [i * i if i % 2 else i for i in range(20)]
    with pytest.raises(ZeroDivisionError):
        Parallel(n_jobs=-1, batch_size=4)([*calls[:6], delayed(divmod)(1, 0), *calls[6:]])
    results = Parallel(n_jobs=-1, return_as="generator")(delayed(square)(i) for i in range(50))
    assert list(results) == [i * i for i in range(50)]


def test_threads_of_the_driver_agree(pool: sky.Compute, counted: Counted) -> None:
    square = counted.square()
    got: list[int] = []

    def ask() -> None:
        got.extend(pool.submit(square, i).result() for i in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(4 * [i * i for i in range(20)])
    assert len(counted.ran) == 20


def test_the_parts_say_what_they_are(counted: Counted) -> None:
    square = counted.square()
    call = cached_call(square, (2,), {})
    assert isinstance(call, CachedCall)
    assert "square" in repr(call)
    assert "square" in repr(call.function)
    assert call.function is CachedCall(square, (3,), {}).function
    assert OneOfBatch(call).find() is None
    assert is_kept(square)
    assert is_kept(square.call_and_shelve)
    assert not any(map(is_kept, (abs, "".join, counted.square, square.check_call_in_cache, square.call)))


def test_methods_that_are_not_cached_are_sent_in_batches(pool: sky.Compute, counted: Counted) -> None:
    method = Model(counted.memory, 2).times_
    queued: list[int] = []
    stop = pool.events.subscribe(lambda event: queued.append(event.count) if isinstance(event, TasksQueued) else None)
    list(pool.map(method, range(20), chunksize=10))
    Parallel(n_jobs=2, batch_size=10, pre_dispatch="all")(delayed(method)(i) for i in range(20))
    stop()
    assert queued == [10] * 4

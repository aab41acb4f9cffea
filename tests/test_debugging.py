"""What a failure says: which item, where in the source, and how it is run again here."""

from __future__ import annotations

import linecache
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, delayed
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import skyward as sky

pytestmark = pytest.mark.slow  # driver and nodes import scikit-learn


@pytest.fixture(scope="module")
def pool() -> Iterator[sky.Compute]:
    with sky.Compute(concurrency=2, console=False, plugins=[sky.plugins.sklearn()]) as pool:
        yield pool


def fit(number: int, data: Any = None) -> int:
    if number == 17:
        raise ValueError("no", number)
    return number


@sky.compute
def lazily(number: int) -> int:
    return fit(number)


def note_of(call: Callable[[], object], kind: type[BaseException] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        call()
    if kind is ValueError:
        assert caught.value.args == ("no", 17)
    (note,) = caught.value.__notes__
    return str(note)


@pytest.mark.parametrize("batch", ["auto", 1, 8])
def test_the_item_of_a_parallel(pool: sky.Compute, batch: Any) -> None:
    data = np.zeros((20, 3))
    note = note_of(lambda: Parallel(n_jobs=-1, batch_size=batch)(delayed(fit)(i, data=data) for i in range(30)))
    assert note == "item 17 (the first is 0) on node-1: fit(17, data=<ndarray float64 (20, 3)>)"
    assert sky.last_failure.index == 17
    assert sky.last_failure.label == "fit"
    assert sky.last_failure.args == (17,)
    assert sky.last_failure.kwargs["data"].shape == (20, 3)


def test_a_parallel_that_is_used_again_counts_anew(pool: sky.Compute) -> None:
    with Parallel(n_jobs=-1, batch_size=4) as parallel:
        parallel(delayed(fit)(i) for i in range(7))
        assert note_of(lambda: parallel(delayed(fit)(17 if i == 5 else 0) for i in range(7))).startswith("item 5 ")


@pytest.mark.parametrize("chunksize", [1, 4])
def test_the_item_of_a_map(pool: sky.Compute, chunksize: int) -> None:
    note = note_of(lambda: list(pool.map(fit, range(30), chunksize=chunksize)))
    assert note == "item 17 (the first is 0) on node-1: fit(17)"
    assert (sky.last_failure.index, sky.last_failure.args) == (17, (17,))


def test_other_calls(pool: sky.Compute) -> None:
    assert note_of(lambda: pool.submit(fit, 17).result()) == "in the call on node-1: fit(17)"
    assert note_of(lambda: lazily(17) >> pool) == "in the call on node-1: lazily(17)"
    assert note_of(lambda: (lazily(1) & lazily(17)) >> pool) == "item 1 (the first is 0) on node-1: lazily(17)"


def test_an_item_of_a_search_of_scikit_learn(pool: sky.Compute) -> None:
    data, target = np.random.default_rng(0).random((40, 3)), np.arange(40) % 2
    search = GridSearchCV(SVC(), {"C": [1.0, -1.0]}, error_score="raise", n_jobs=-1, cv=2)
    note = note_of(lambda: search.fit(data, target), Exception)
    assert note.startswith("item 2 (the first is 0) on node-1: _fit_and_score(\n    SVC(C=-1.0),\n")


def test_batches_that_kill_their_process_name_their_items(pool: sky.Compute) -> None:
    def call() -> None:
        list(pool.map(os._exit, [3, 3, 3, 3], chunksize=3))

    assert note_of(call, sky.WorkerCrashed) == "one of the items 0 to 2 (the first is 0) on node-1"
    assert len(sky.last_failure.calls) == 3
    with pytest.raises(sky.NoFailure, match="it is not known which of its 3 calls it was running"):
        _ = sky.last_failure.args
    with pytest.raises(sky.WorkerCrashed, match="exit status 3"):
        raise sky.last_failure.error


def test_items_of_a_resumed_call(tmp_path: Path) -> None:
    """The items that are known from the first run count too."""
    file = tmp_path / "run.resume"
    for wrong, expected in (((), None), ((5,), "item 5 ")):
        with sky.Compute(concurrency=2, console=False, plugins=[sky.plugins.joblib()], resume=file):
            numbers = [17 if i in wrong else i for i in range(8)]
            call = lambda: Parallel(n_jobs=-1, batch_size=4)(delayed(fit)(i) for i in numbers)  # noqa: B023, E731
            if expected is None:
                call()
            else:
                assert note_of(call).startswith(expected)


CELL = """
def helper(x):
    return 1 / x

def task(x):
    return helper(x)
"""


def test_a_cell_of_a_notebook_shows_its_lines_and_is_debugged_here(pool: sky.Compute) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL, "<cell 3>", "exec"), namespace)
    linecache.cache["<cell 3>"] = (len(CELL), None, CELL.splitlines(keepends=True), "<cell 3>")
    try:
        with pytest.raises(ZeroDivisionError) as caught:
            pool.submit(namespace["task"], 0).result()
        text = "".join(traceback.format_exception(caught.value))
    finally:
        del linecache.cache["<cell 3>"]
    assert '"<cell 3>", line 6, in task\n    return helper(x)\n' in text
    assert '"<cell 3>", line 3, in helper\n    return 1 / x\n' in text
    seen: list[Any] = []

    def look(trace: Any) -> None:
        while trace.tb_next is not None:
            trace = trace.tb_next
        seen.append((trace.tb_frame.f_code.co_name, trace.tb_frame.f_locals))

    sky.last_failure.debug(look)
    assert seen == [("helper", {"x": 0})]


def test_a_failure_can_be_replayed_after_the_pool() -> None:
    """Its arguments are those of the task: what has been written into them since, and in a replay, does not count."""
    data = np.ones(300_000)

    def task(data: Any) -> None:
        data[0] += 1
        raise KeyError(float(data[0]))

    with sky.Compute(concurrency=1, console=False) as pool:
        future = pool.submit(task, data)
        data[:] = 5
        assert isinstance(future.exception(), KeyError)
    for _ in range(2):
        with pytest.raises(KeyError, match=r"2\.0"):
            sky.last_failure.run()

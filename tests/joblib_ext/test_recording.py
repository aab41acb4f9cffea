"""All tasks of a call are counted, a few are run, and none is answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.joblib_ext.recording import record


def note(folder: Path, number: int, seconds: float = 0.0) -> int:
    (folder / f"{number}").touch()
    time.sleep(seconds)
    return number


def ran(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.mark.parametrize("options", [{}, {"pre_dispatch": "all"}, {"batch_size": 1}, {"pre_dispatch": 3}], ids=str)
def test_all_tasks_are_counted_and_a_few_run(tmp_path: Path, options: dict[str, Any]) -> None:
    found = record(lambda: Parallel(n_jobs=-1, **options)(delayed(note)(tmp_path, i) for i in range(500)), 4, 5.0)
    assert (found.calls, found.tasks) == (500, 500)
    assert len(ran(tmp_path)) == len(found.samples) <= 25
    assert {0, 499} <= set(ran(tmp_path))
    assert [sample.cold for sample in found.samples] == [True, *[False] * (len(found.samples) - 1)]


def test_long_tasks_are_few(tmp_path: Path) -> None:
    found = record(lambda: Parallel(n_jobs=-1)(delayed(note)(tmp_path, i, 0.3) for i in range(50)), 4, 0.1)
    assert ran(tmp_path) == [0]
    assert found.samples[0].seconds == pytest.approx(0.3, abs=0.2)
    assert found.cpu < 0.5


def test_several_processes_share_what_is_run(tmp_path: Path) -> None:
    parts = []
    for share in range(3):
        (folder := tmp_path / str(share)).mkdir()
        record(lambda: Parallel(n_jobs=-1)(delayed(note)(folder, i) for i in range(9)), 4, 5.0, share, 3)
        parts += ran(folder)
    assert sorted(parts) == list(range(9))


def test_the_largest_task_is_run() -> None:
    found = record(
        lambda: Parallel(n_jobs=-1)(delayed(time.sleep)(0.2 if i == 77 else 0.001) for i in range(200)), 4, 5.0
    )
    assert max(sample.seconds for sample in found.samples) >= 0.2


def test_bytes_that_go_once_and_with_each_task() -> None:
    data = np.zeros(1_000_000)
    found = record(lambda: Parallel(n_jobs=-1)(delayed(np.sum)(data) for _ in range(30)), 4, 5.0)
    assert found.shared == data.nbytes
    assert 0 < found.bytes < 10_000


def test_batches_of_a_size_are_tasks() -> None:
    found = record(lambda: Parallel(n_jobs=-1, batch_size=7)(delayed(abs)(i) for i in range(300)), 4, 5.0)
    assert found.calls == 300
    assert found.tasks < 100  # joblib makes smaller ones at the end


def test_generators_are_counted_too() -> None:
    def call() -> list[Any]:
        return list(Parallel(n_jobs=-1, return_as="generator")(delayed(abs)(i) for i in range(30)))

    assert record(call, 4, 5.0).calls == 30


def test_an_empty_call_before_the_one_that_counts() -> None:
    def call() -> None:
        assert Parallel(n_jobs=-1)([]) == []
        assert Parallel(n_jobs=1)(delayed(abs)(i) for i in range(3)) == [0, 1, 2]
        Parallel(n_jobs=-1)(delayed(abs)(i) for i in range(40))

    assert record(call, 4, 5.0).calls == 40


def test_a_call_without_tasks() -> None:
    for call in (lambda: 3, lambda: Parallel(n_jobs=1)(delayed(abs)(i) for i in range(3))):
        with pytest.raises(sky.ConfigError, match="explain: the call has no tasks for a pool"):
            record(call, 4, 5.0)


def broken() -> Iterator[Any]:
    yield delayed(abs)(1)
    yield delayed(abs)(1)
    raise LookupError("no more")


@pytest.mark.parametrize("call", [lambda: 1 / 0, lambda: Parallel(n_jobs=-1)(delayed(divmod)(1, 0) for _ in range(9))])
def test_errors_of_the_call_and_of_its_tasks(call: Callable[[], object]) -> None:
    with pytest.raises(ZeroDivisionError):
        record(call, 4, 5.0)


def test_errors_of_its_iterator() -> None:
    with pytest.raises(LookupError, match="no more"):
        record(lambda: Parallel(n_jobs=-1, pre_dispatch=1)(broken()), 4, 5.0)

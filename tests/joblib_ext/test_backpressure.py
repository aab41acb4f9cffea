"""Large results of a generator that is read slowly do not pile up."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from joblib import Parallel, delayed
from numpy.typing import NDArray

import skyward as sky
from skyward.integrations.joblib import sklearn_backend
from skyward.joblib_ext import backpressure
from skyward.joblib_ext.backpressure import Backlog
from tests.lab.wait import eventually


def test_it_holds_back_in_order_while_much_lies_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backpressure, "LIMIT", 100)
    ready, sent = 5, deque[int]()
    log = Backlog(lambda: ready + len(log._held), lambda: 2)
    assert not log.hold(lambda: sent.append(0))  # sizes are not known yet
    log.ended(50)
    for number in range(3):
        assert log.hold(lambda number=number: sent.append(number))  # type: ignore[misc]
    assert log.is_full
    ready = 4
    eventually(lambda: list(sent) == [0, 1, 2])
    eventually(lambda: not log._runs)
    assert not log.hold(lambda: None)
    ready = 5
    assert log.hold(lambda: sent.append(9))
    log.close()
    eventually(lambda: not log._runs)
    assert not log.hold(lambda: None)
    assert list(sent) == [0, 1, 2]


def test_other_calls_hold_nothing_back() -> None:
    log = Backlog(None, lambda: 2)
    log.ended(1 << 40)
    assert not log.hold(lambda: None)


def make(folder: str, number: int) -> NDArray[np.float64]:
    Path(folder, str(number)).touch()
    return np.full(500_000, float(number))  # 4 MB


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generator", "generator_unordered"])
def test_a_generator_that_is_read_slowly(kind: str, tmp_path: Path) -> None:
    count, most = 60, 64 // 4
    with sky.Compute(nodes=2, concurrency=2, console=False) as pool, sklearn_backend(pool):
        calls = (delayed(make)(str(tmp_path), number) for number in range(count))
        results = Parallel(n_jobs=-1, return_as=kind, batch_size=1)(calls)
        seen = [float(next(results)[0])]
        eventually(lambda: any(t.name == "skyward-joblib-backlog" for t in threading.enumerate()), 20)
        eventually(lambda: "0 jobs" in repr(pool.dispatcher), 20)
        # What may lie ready, one in each slot, and joblib's first eight, which go out before any size is known.
        assert len(list(tmp_path.iterdir())) <= most + 4 + 8
        seen += [float(array[0]) for array in results]
    assert sorted(seen) == list(map(float, range(count)))
    assert kind == "generator_unordered" or seen == sorted(seen)


def test_what_is_held_goes_out_when_nothing_can_be_sent_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backpressure, "LIMIT", 100)
    is_open, sent = threading.Event(), deque[int]()
    is_open.set()
    log = Backlog(lambda: 5 + len(log._held), lambda: 2, is_open.is_set)
    log.ended(50)
    assert log.hold(lambda: sent.append(0))
    assert log._runs
    is_open.clear()
    eventually(lambda: not log._runs)
    assert list(sent) == [0]


@pytest.mark.slow
def test_a_generator_that_is_left_unread_when_the_pool_is_closed(tmp_path: Path) -> None:
    """Nothing polls for its sake any more, and who goes on to read it is told."""
    with sky.Compute(nodes=1, concurrency=2, console=False) as pool, sklearn_backend(pool):
        results = Parallel(n_jobs=-1, return_as="generator", batch_size=1)(
            delayed(make)(str(tmp_path), number) for number in range(60)
        )
        eventually(lambda: any(t.name == "skyward-joblib-backlog" for t in threading.enumerate()), 20)
    eventually(lambda: not any(t.name == "skyward-joblib-backlog" for t in threading.enumerate()))
    with pytest.raises(sky.PoolNotActive, match="closed"):
        list(results)

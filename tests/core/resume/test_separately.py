"""Results come back one by one, each as a pickle of its own."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from skyward.core.errors import PayloadError
from skyward.core.function import Chunk, compute
from skyward.core.payload import pickling
from skyward.core.resume.separately import OneCall, Separately


def double(x: int, *, plus: int = 0) -> int:
    return 2 * x + plus


def test_each_result_is_a_pickle() -> None:
    apart = pickle.loads(pickle.dumps(Separately(Chunk(double, [(1,), (2,)]))))
    assert [pickling.loads(head, buffers) for head, buffers in apart()] == [2, 4]
    assert apart.label == "double"


def test_one_call_is_a_list_of_one() -> None:
    one = pickle.loads(pickle.dumps(OneCall(double, (3,), {"plus": 1})))
    assert one() == [7]
    assert one.label == "double"
    assert list(one.parts()) == [(double, (3,), {"plus": 1})]
    assert one.only([0]) is one


def test_a_pending_call_is_run() -> None:
    assert OneCall(compute(double), (3,), {})() == [6]


def test_large_buffers_stay_out() -> None:
    array = np.arange(100_000)
    ((head, buffers),) = Separately(OneCall(lambda: array, (), {}))()
    assert len(head) < 1000
    outer, out = pickling.dumps([(head, buffers)], "result", large=None)
    assert (len(outer) < 2000, [len(view) for view in out]) == (True, [array.nbytes])


def test_a_window_on_a_file_is_a_value(tmp_path: Path) -> None:
    """The file may have changed when the result is taken again."""
    array = np.memmap(tmp_path / "x", np.float64, "w+", shape=4)
    array[:] = 5
    ((head, buffers),) = Separately(OneCall(lambda: array, (), {}))()
    array[:] = 6
    assert pickling.loads(head, buffers).tolist() == [5] * 4 or buffers
    assert b"open_map" not in head


def test_a_result_that_cant_be_pickled_is_named() -> None:
    with pytest.raises(PayloadError, match="can't pickle result"):
        Separately(OneCall(lambda: (x for x in ()), (), {}))()


def test_some_calls_of_a_chunk() -> None:
    chunk = Chunk(double, [(1,), (2,), (3,)])
    assert [list(args) for _, args, _ in chunk.parts()] == [[1], [2], [3]]
    assert chunk.only([0, 2])() == [2, 6]

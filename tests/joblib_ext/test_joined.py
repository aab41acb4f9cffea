"""The future of several tasks ends when all have, or one has failed."""

from __future__ import annotations

import concurrent.futures

import pytest

from skyward.core.tasks.futures import TaskFuture
from skyward.joblib_ext.joined import JoinedFuture

cancelled: list[int] = []


def parts(count: int) -> list[TaskFuture[list[int]]]:
    cancelled.clear()
    return [TaskFuture(cancelled.append, task) for task in range(count)]


def test_it_is_done_when_all_are() -> None:
    three = parts(3)
    three[1].set_result([1])
    three[1].seconds = 0.5
    joined = JoinedFuture(three)
    assert not joined.began
    three[2].began = True
    assert joined.began
    three[0].set_result([0])
    assert not joined.done()
    three[2].size = three[2].result_size = 7
    three[2].set_result([2, 3])
    assert joined.result(0) == [0, 1, 2, 3]
    assert (joined.seconds, joined.result_size) == (0.5, 7)
    assert not joined.cancel()
    assert JoinedFuture(parts(0) or three).done()


def test_one_that_fails_cancels_the_others() -> None:
    three = parts(3)
    joined = JoinedFuture(three)
    three[1].set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        joined.result(0)
    assert cancelled == [0, 2]


def test_to_cancel_it_cancels_all() -> None:
    three = parts(3)
    three[0].set_result([0])
    joined = JoinedFuture(three)
    assert joined.cancel()
    assert sorted(cancelled) == [1, 2]
    assert joined.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        joined.result(0)


def test_if_one_is_cancelled_so_is_it() -> None:
    three = parts(3)
    joined = JoinedFuture(three)
    three[2].cancel()
    assert concurrent.futures.wait([joined], 0).not_done == set()
    assert joined.cancelled()
    assert sorted(cancelled) == [0, 1, 2]

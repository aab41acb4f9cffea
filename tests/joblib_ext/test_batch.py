"""What is sent of a batch, and what it runs."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
from joblib.parallel import BACKENDS, BatchedCalls, SequentialBackend

from skyward.joblib_ext import open_pools
from skyward.joblib_ext.batch import Batch, Initializer, plain_parts

CALLS = [(pow, (2, 3), {}), (pow, (3, 2), {})]
ran: list[int] = []


@pytest.fixture(autouse=True)
def _this_process_is_no_slot() -> Iterator[None]:
    """To run a batch makes a process a slot, which the tests that follow must not be in."""
    backends = dict(BACKENDS)
    yield
    open_pools._node.clear()
    BACKENDS.clear()
    BACKENDS.update(backends)


def add(number: int) -> None:
    ran.append(number)
    if number < 0:
        raise KeyError(number)


def copy(batch: Batch) -> Batch:
    copied: Batch = pickle.loads(cloudpickle.dumps(batch))
    return copied


def test_calls_run_in_order() -> None:
    assert copy(Batch(CALLS, 1))() == [8, 9]
    assert copy(Batch(BatchedCalls(CALLS, (SequentialBackend(), None))))() == [8, 9]


def test_the_function_is_pickled_once_where_all_calls_are_of_one() -> None:
    batch = Batch(CALLS, 1, None, cloudpickle.dumps(pow), 3)
    assert plain_parts(batch) == [(2, 3), {}, (3, 2), {}]
    copied = copy(batch)
    assert copied() == [8, 9]
    assert (copied.function, copied.number) == (None, 3)
    assert plain_parts(Batch(CALLS, 1)) is None


@pytest.mark.parametrize(("count", "label"), [(1, "pow"), (2, "pow"), (0, "list")])
def test_its_label_names_the_function(count: int, label: str) -> None:
    assert Batch(CALLS[:count], 1).label == label


def test_an_initializer_runs_once_in_a_process() -> None:
    ran.clear()
    initializer = Initializer.pack(add, (4,), "none")
    for _ in range(3):
        copied: Any = pickle.loads(pickle.dumps(initializer, protocol=5))
        copied.once()
    assert ran == [4]


def test_an_initializer_that_fails_runs_again_and_is_named() -> None:
    ran.clear()
    initializer = Initializer.pack(add, (-1,), "none")
    for _ in range(2):
        with pytest.raises(KeyError) as caught:
            initializer.once()
        assert "(raised by the initializer that was given to joblib)" in caught.value.__notes__
    assert ran == [-1, -1]

"""`FutureCondition` has all that `concurrent.futures` asks of a condition."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Iterator

import pytest

from skyward.core.tasks.future_condition import FutureCondition
from skyward.core.tasks.futures import TaskFuture


@pytest.fixture
def future() -> TaskFuture[int]:
    return TaskFuture(lambda _: None, 1)


@pytest.fixture
def threads() -> Iterator[list[threading.Thread]]:
    running: list[threading.Thread] = []
    yield running
    for thread in running:
        thread.join(30)
        assert not thread.is_alive()


def test_all_who_wait_are_woken(future: TaskFuture[int], threads: list[threading.Thread]) -> None:
    """However many threads wait for one future, each gets its result."""
    got: list[int] = []
    threads += [threading.Thread(target=lambda: got.append(future.result(30))) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(future._condition._sleepers or ()) < 4:
        time.sleep(0.001)
    future.set_result(7)
    for thread in threads:
        thread.join(30)
    assert got == [7] * 4


def test_a_limit_holds_and_does_no_harm(future: TaskFuture[int]) -> None:
    """One who gives up waiting leaves the future as it was."""
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.01)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(-1)
    future.set_result(7)
    assert future.result(0) == 7


def test_futures_of_both_kinds_are_waited_for_together(future: TaskFuture[int]) -> None:
    """`concurrent.futures.wait` takes the locks of all of them at once."""
    plain: concurrent.futures.Future[int] = concurrent.futures.Future()
    plain.set_result(1)
    done, waiting = concurrent.futures.wait([future, plain], timeout=0.01)
    assert (done, waiting) == ({plain}, {future})
    future.set_result(7)
    assert set(concurrent.futures.as_completed([future, plain], timeout=5)) == {plain, future}


def test_the_thread_that_has_the_lock_may_take_it_again() -> None:
    """A finalizer or a signal may meet a future that its own thread is at."""
    bell = FutureCondition()
    with bell, bell:
        bell.notify_all()
    assert bell.acquire()
    bell.release()
    with pytest.raises(RuntimeError):
        bell.release()

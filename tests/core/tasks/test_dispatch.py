"""Calls of any thread reach the nodes, or fail at once."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest

from skyward.core.errors import PayloadError, PoolNotActive
from skyward.core.events import TaskEnded
from tests.core.memory_agent import MemoryPool
from tests.core.tasks.calls import double
from tests.lab.wait import eventually


def test_results_come_back(pool: MemoryPool) -> None:
    """Each future gets its own result and the time it took."""
    pool.add()
    futures = [pool.submit(double, i) for i in range(500)]
    assert [future.result(30) for future in futures] == [2 * i for i in range(500)]
    assert all(future.seconds is not None for future in futures)


def test_tasks_wait_for_the_first_node(pool: MemoryPool) -> None:
    """What is submitted before any node is up runs when one comes."""
    future = pool.submit(double, 4)
    pool.add()
    assert future.result(30) == 8


def test_an_argument_that_does_not_pickle_is_named_and_harms_nobody(pool: MemoryPool) -> None:
    """The error says where the culprit sits; submit itself does not raise, and the pool goes on."""
    pool.add()
    future = pool.submit(double, {"model": [threading.Lock()]})
    with pytest.raises(PayloadError, match=r"the call\[1\]\[0\]\['model'\]\[0\] \(a _thread.lock\)") as caught:
        future.result(30)
    assert isinstance(caught.value, pickle.PicklingError)
    assert pool.submit(double, 1).result(30) == 2


@pytest.mark.parametrize("count", [10_000, 400_000])
def test_an_array_that_is_changed_after_submit_changes_no_result(pool: MemoryPool, count: int) -> None:
    """Tasks see their arguments as they were, also those that use the same content later."""
    agent = pool.add(slots=1, holding=True)
    x = np.zeros(count)
    futures = [pool.submit(lambda a: float(a.sum()), x) for _ in range(2)]
    x[:] = 1
    ones = pool.submit(lambda a: float(a.sum()), x)
    x[:] = 0
    futures.append(pool.submit(lambda a: float(a.sum()), x))
    eventually(lambda: agent.held)
    pool.do(agent.release)
    assert [future.result(30) for future in futures] == [0.0, 0.0, 0.0]
    assert ones.result(30) == count
    eventually(lambda: "<Snapshots 0" in repr(pool.dispatcher._snapshots))


def test_a_closed_pool_says_so(pool: MemoryPool) -> None:
    """After close, submit raises and nothing hangs."""
    waiting = pool.submit(double, 1)
    pool.close()
    assert waiting.cancelled()
    with pytest.raises(PoolNotActive):
        pool.submit(double, 1)


@pytest.mark.parametrize("gone", [False, True], ids=["the loop runs", "the loop has ended"])
def test_a_callback_that_exits_keeps_no_task_from_being_cancelled(pool: MemoryPool, gone: bool) -> None:
    """Closing goes on to its end; who waits for the futures learns of it."""
    waiting = [pool.submit(double, number) for number in range(3)]
    ended: list[Any] = []
    pool.dispatcher._events.subscribe(ended.append, [TaskEnded])
    for future in waiting:
        future.add_done_callback(lambda _: sys.exit("from a callback"))
    if gone:
        pool.io.stop()
        with pytest.raises(SystemExit, match="from a callback"):
            pool.dispatcher.close()
    else:
        pool.close()
    assert concurrent.futures.wait(waiting, 5).not_done == set()
    assert all(future.cancelled() for future in waiting)
    assert [(event.cancelled, event.label) for event in ended] == [(True, "double")] * 3


class _Slow:
    """Takes its time to be pickled."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        self.began.set()
        assert self.may_end.wait(30)
        return int, ()


@pytest.mark.parametrize("late", ["before the loop ends", "after the end"])
def test_a_call_that_is_pickled_while_the_pool_is_closed_does_not_hang(pool: MemoryPool, late: str) -> None:
    """Its future is cancelled, whenever it comes."""
    pool.add()
    slow = _Slow()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        submitting = threads.submit(pool.submit, double, slow)
        assert slow.began.wait(30)
        if late == "after the end":
            pool.close()
            slow.may_end.set()
            future = submitting.result(30)
        else:
            pool.dispatcher.shut("closed")
            pool.do(pool.dispatcher.cancel_all)
            pool.do(pool.dispatcher.runner.node_down, "m0", "given back")
            slow.may_end.set()
            future = submitting.result(30)
            pool.close()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(30)


@pytest.mark.slow
def test_more_arrays_than_a_message_has_buffers(pool: MemoryPool) -> None:
    """Those beyond the limit travel in the pickle."""
    pool.add()
    array = np.zeros(16 * 1024, np.uint8)
    assert pool.submit(len, [array[:] for _ in range(66_000)]).result(120) == 66_000


def _submit_in_child(pool: MemoryPool, answers: object) -> None:
    try:
        pool.submit(double, 1)
    except PoolNotActive as error:
        answers.put(str(error))  # type: ignore[attr-defined]


def test_use_after_fork_raises(pool: MemoryPool) -> None:
    """A forked child gets an error, it does not hang."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_submit_in_child, args=(pool, answers))
    child.start()
    assert "fork" in answers.get(timeout=30)
    child.join(30)

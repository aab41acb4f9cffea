"""Every future gets its own answer, in order, and no callback holds up another group."""

from __future__ import annotations

import os
import pickle
import threading
import time

import pytest

from skyward.core.errors import PayloadError, TaskTimeout
from skyward.core.payload.exceptions import RemoteTraceback
from skyward.core.protocol import messages
from skyward.core.tasks.delivery import TOGETHER
from skyward.core.tasks.jobs import TaskGroup, TaskOptions
from tests.core.memory_agent import MemoryPool
from tests.core.tasks.calls import Odd, double, fail
from tests.lab.wait import eventually


def test_an_exception_keeps_type_attributes_and_cause(pool: MemoryPool) -> None:
    """A task's own exception comes back whole, with the remote traceback at the end of its causes."""
    pool.add()
    with pytest.raises(Odd) as caught:
        pool.submit(fail).result(30)
    error = caught.value
    assert (error.code, error.hint, error.args) == (7, "look there", ("code 7",))
    assert isinstance(error.__cause__, KeyError)
    assert isinstance(error.__cause__.__cause__, RemoteTraceback)
    assert "in fail" in str(error.__cause__.__cause__)


class Unloadable:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return _only_there, (os.getpid(),)


def _only_there(_pid: int) -> object:
    raise RuntimeError("not in this process")


def test_a_result_that_does_not_load_here_is_an_error_of_that_task_only(pool: MemoryPool) -> None:
    """A result whose unpickling raises fails its own future."""
    pool.add()
    with pytest.raises(PayloadError, match="can't be loaded here"):
        pool.submit(Unloadable).result(30)
    assert pool.submit(double, 1).result(30) == 2


class _Unspeakable(Exception):
    """Its repr can't be had, and not with a plain exception."""

    def __repr__(self) -> str:
        raise SystemExit(3)


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return _refuses_to_load, (os.getpid(),)


def _refuses_to_load(_pid: int) -> object:
    raise _Unspeakable


def test_an_answer_of_any_kind_settles_its_task(pool: MemoryPool) -> None:
    """One that can't be read, whatever happens on the way, is an error of that task; the next one of its call comes."""
    agent = pool.add(slots=3, holding=True)
    futures = [pool.submit(double, number) for number in range(3)]
    eventually(lambda: len(agent.held) == 3)
    pool.do(agent.say, messages.Failed(1, 0.1, messages.Failure.RAISED.value, ""), [b"garbage"])
    pool.do(agent.say, messages.Done(2, 0.1), [pickle.dumps(_Hostile())])
    pool.do(agent.release)
    for future in futures[:2]:
        with pytest.raises(PayloadError, match=r"the answer of double on m0 can't be read: (Unpickl|SystemExit)"):
            future.result(30)
    assert futures[2].result(30) == 4


def test_a_slow_callback_of_one_call_does_not_hold_up_another(pool: MemoryPool) -> None:
    """Callbacks of one call run in a lane of their own."""
    agent = pool.add(holding=True)
    stuck, released = threading.Event(), threading.Event()
    slow = pool.submit(double, 1, options=TaskOptions(group=TaskGroup()))
    slow.add_done_callback(lambda _: (stuck.set(), released.wait(30)))  # of a task that is done it would run here
    pool.do(agent.release)
    assert stuck.wait(30)
    assert pool.submit(double, 2, options=TaskOptions(group=TaskGroup())).result(30) == 4
    released.set()


def test_callbacks_of_one_call_come_one_at_a_time(pool: MemoryPool) -> None:
    """joblib relies on it."""
    pool.add()
    busy = threading.Lock()
    overlaps, done = [], []

    def callback(_: object) -> None:
        overlaps.append(not busy.acquire(blocking=False))
        done.append(1)
        busy.release()

    options = TaskOptions(group=TaskGroup())
    for i in range(200):
        pool.submit(double, i, options=options).add_done_callback(callback)
    eventually(lambda: len(done) == 200)
    assert not any(overlaps)


def test_errors_that_come_together_are_met_in_order(pool: MemoryPool) -> None:
    """Whichever of them is heard of first; none waits for a task that goes on."""
    agent = pool.add(slots=5, holding=True)
    met: list[int] = []
    futures = [pool.submit(divmod, number, number % 2) for number in range(5)]  # every other one fails
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: met.append(number))
    eventually(lambda: len(agent.held) == 5)
    pool.do(lambda: [agent.answer(task) for task in (5, 3, 2)])
    pool.do(agent.flush)
    eventually(lambda: len(met) == 3)
    assert met == [1, 2, 4]
    pool.do(agent.release)
    assert [type(future.exception(5)) for future in futures] == [ZeroDivisionError, type(None)] * 2 + [
        ZeroDivisionError
    ]


def test_an_error_does_not_wait_for_a_task_that_runs_for_long(pool: MemoryPool) -> None:
    """Nor longer than for the answer that was expected before."""
    kept = pool.dispatcher._completion._errors.held
    agent = pool.add(slots=4, holding=True)
    first, second, third = [pool.submit(divmod, 1, 0) for _ in range(3)]
    eventually(lambda: len(agent.held) == 3)

    def answer(task: int) -> None:
        agent.answer(task)
        agent.flush()

    pool.do(answer, 3)
    eventually(lambda: kept)
    pool.do(answer, 2)
    pool.do(agent.begin, 1)
    assert third.exception(5) is not None
    assert second.done()
    eventually(lambda: 0 < pool.dispatcher.runner.jobs[1].began < time.monotonic() - TOGETHER)
    fourth = pool.submit(divmod, 1, 0)
    eventually(lambda: 4 in agent.held)
    pool.do(answer, 4)
    eventually(lambda: 4 not in pool.dispatcher.runner.jobs)
    assert not kept
    assert fourth.exception(5) is not None
    assert not first.done()
    pool.do(agent.release)
    assert first.exception(5) is not None


def test_an_error_that_is_kept_back_is_not_lost_at_the_end(pool: MemoryPool) -> None:
    agent = pool.add(slots=2, holding=True)
    futures = [pool.submit(divmod, 1, 0) for _ in range(2)]
    eventually(lambda: len(agent.held) == 2)

    def answer() -> None:
        agent.answer(2)
        agent.flush()

    pool.do(answer)
    eventually(lambda: 2 not in pool.dispatcher.runner.jobs)
    pool.close()
    assert futures[0].cancelled()
    assert isinstance(futures[1].exception(5), ZeroDivisionError)


def test_a_time_limit_names_task_and_node(pool: MemoryPool) -> None:
    """A timeout that the node reports becomes TaskTimeout."""
    agent = pool.add(holding=True)
    future = pool.submit(double, 1, options=TaskOptions(timeout=2.5, count=2))
    eventually(lambda: agent.held)
    assert agent.held[1][0].timeout == 5.0
    pool.do(agent.crash, 1, messages.Failure.TIMEOUT, "")
    with pytest.raises(TaskTimeout, match=r"double \(a batch of 2\) \(task 1\) on m0 was stopped after 5 s"):
        future.result(30)

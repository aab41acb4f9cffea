"""A result that is kept makes no task; of equal calls one at a time is computed, and nobody is left waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pytest

from skyward.core.errors import NodeLost, PoolNotActive
from skyward.core.tasks.futures import TaskFuture
from tests.core.memory_agent import MemoryPool
from tests.core.tasks.calls import double, fail
from tests.lab.wait import eventually


class Shelf:
    """What is kept, in memory."""

    def __init__(self, *, full: bool = False) -> None:
        self.kept: dict[Hashable, Any] = {}
        self.full = full
        self.looked = 0
        self.error: BaseException | None = None

    def find(self, key: Hashable) -> tuple[Any] | None:
        self.looked += 1
        if self.error is not None:
            raise self.error
        return (self.kept[key],) if key in self.kept else None

    def keep(self, key: Hashable, result: Any) -> Any:
        if not self.full:
            self.kept[key] = result
        return result


class Call:
    """A `KeptCall`."""

    def __init__(self, shelf: Shelf, key: Hashable, function: Callable[..., Any]) -> None:
        self.shelf, self.key, self.function = shelf, key, function
        self.detached = 0
        self.error: Exception | None = None

    def find(self) -> tuple[Any] | None:
        return self.shelf.find(self.key)

    def detach(self) -> None:
        self.detached += 1
        if self.error is not None:
            raise self.error

    def keep(self, result: Any, seconds: float) -> Any:
        assert seconds >= 0
        return self.shelf.keep(self.key, result)


def submit(
    pool: MemoryPool, shelf: Shelf, function: Callable[..., Any], *args: Any, key: Hashable = None
) -> TaskFuture[Any]:
    key = repr(args) if key is None else key
    return pool.dispatcher.call_kept(Call(shelf, key, function), function, args, {})


def idle(pool: MemoryPool) -> None:
    eventually(lambda: "0 open, 0 wait" in repr(pool.dispatcher.kept))
    eventually(lambda: "<Snapshots 0" in repr(pool.dispatcher._snapshots))
    pool.dispatcher.kept.wait()


def test_a_kept_result_makes_no_task(pool: MemoryPool) -> None:
    shelf = Shelf()
    pool.add()
    assert submit(pool, shelf, double, 4).result(30) == 8
    idle(pool)
    shelf.kept["(4,)"] = "kept"
    future = submit(pool, shelf, double, 4)
    assert future.done()
    assert future.result() == "kept"
    assert not future.cancel()
    assert pool.dispatcher.unfinished == 0


def test_equal_calls_are_computed_once(pool: MemoryPool) -> None:
    shelf = Shelf()
    agent = pool.add(slots=2, holding=True)
    futures = [submit(pool, shelf, double, x) for x in (1, 2, 1, 2, 1)]
    eventually(lambda: len(agent.held) == 2)
    assert pool.dispatcher.unfinished == 5
    pool.do(agent.release)
    assert [future.result(30) for future in futures] == [2, 4, 2, 4, 2]
    assert shelf.looked == 5
    idle(pool)


def test_if_the_first_fails_the_next_one_is_computed(pool: MemoryPool) -> None:
    shelf = Shelf()
    agent = pool.add(slots=2, holding=True)
    first = submit(pool, shelf, fail, key="same")
    array = np.ones(400_000)
    others = [submit(pool, shelf, lambda a: float(a.sum()), array, key="same") for _ in range(2)]
    array[:] = 7  # they were pickled when they were submitted
    eventually(lambda: len(agent.held) == 1)
    pool.do(agent.release)
    with pytest.raises(Exception, match="code 7"):
        first.result(30)
    eventually(lambda: others[1].done() or pool.do(agent.release) is not None)
    assert [other.result(30) for other in others] == [400_000.0] * 2
    idle(pool)


def test_a_result_that_can_not_be_kept_is_computed_for_each(pool: MemoryPool) -> None:
    shelf = Shelf(full=True)
    pool.add()
    assert [future.result(30) for future in [submit(pool, shelf, double, 3) for _ in range(4)]] == [6] * 4
    idle(pool)


def test_one_that_waits_is_cancelled_at_once(pool: MemoryPool) -> None:
    shelf = Shelf()
    agent = pool.add(holding=True)
    first, second, third = (submit(pool, shelf, double, 1) for _ in range(3))
    eventually(lambda: agent.held)
    assert second.cancel()
    eventually(lambda: second._state == "CANCELLED_AND_NOTIFIED")
    pool.do(agent.release)
    assert (first.result(30), third.result(30)) == (2, 2)
    idle(pool)


def test_if_the_first_is_cancelled_the_next_one_is_computed(pool: MemoryPool) -> None:
    shelf = Shelf()
    first, second = (submit(pool, shelf, double, 1) for _ in range(2))
    assert first.cancel()
    pool.add()
    assert second.result(30) == 2
    idle(pool)


def test_calls_without_a_job_take_their_turn(pool: MemoryPool) -> None:
    """As those within tasks have."""
    kept, shelf = pool.dispatcher.kept, Shelf()
    assert kept.begin("x") is None
    turn, impatient = kept.begin("x"), kept.begin("x")
    assert turn is not None
    assert impatient is not None
    waits = submit(pool, shelf, double, 1, key="x")
    assert not kept.is_queued("x")
    assert not turn.is_set()
    assert kept.give_up("x", impatient)
    kept.leave("x")
    assert turn.is_set()
    assert not kept.give_up("x", turn), "it is our turn"
    assert not waits.done()
    kept.leave("x")
    eventually(lambda: kept.is_queued("x"))
    after = kept.begin("x")
    assert after is not None
    pool.add()
    assert waits.result(30) == 2
    assert after.wait(30)
    kept.leave("x")
    idle(pool)


def test_what_looking_raises_is_the_outcome(pool: MemoryPool) -> None:
    shelf = Shelf()
    agent = pool.add(holding=True)
    first, second, third = (submit(pool, shelf, double, 1) for _ in range(3))
    eventually(lambda: agent.held)
    shelf.error = LookupError("broken")
    pool.do(agent.release)
    assert first.result(30) == 2
    for waiting in (second, third, submit(pool, shelf, double, 9)):
        with pytest.raises(LookupError, match="broken"):
            waiting.result(30)
    idle(pool)
    shelf.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        submit(pool, shelf, double, 9)
    idle(pool)


def test_what_can_not_be_pickled_fails_and_lets_others_go_on(pool: MemoryPool) -> None:
    shelf = Shelf()
    agent = pool.add(holding=True)
    with pytest.raises(Exception, match="lock"):
        submit(pool, shelf, double, threading.Lock(), key="x").result(30)
    idle(pool)
    first = submit(pool, shelf, double, 1, key="x")
    with pytest.raises(Exception, match="lock"):
        submit(pool, shelf, double, threading.Lock(), key="x").result(30)
    eventually(lambda: agent.held)
    pool.do(agent.release)
    assert first.result(30) == 2
    idle(pool)


@pytest.mark.parametrize("waits", [False, True])
def test_arguments_that_can_not_be_noted_leave_nothing_behind(pool: MemoryPool, waits: bool) -> None:
    """Whether or not an equal call is being computed."""
    shelf = Shelf()
    first = submit(pool, shelf, double, 1, key="x") if waits else None
    call = Call(shelf, "x", double)
    call.error = ValueError("no repr")
    with pytest.raises(ValueError, match="no repr"):
        pool.dispatcher.call_kept(call, double, (np.ones(400_000),), {}).result(30)
    assert "<Snapshots 0" in repr(pool.dispatcher._snapshots)
    pool.add()
    if first is not None:
        assert first.result(30) == 2
    idle(pool)


def test_nobody_waits_for_a_pool_that_is_closed_or_without_nodes(pool: MemoryPool) -> None:
    shelf = Shelf()
    futures = [submit(pool, shelf, double, 1) for _ in range(3)]
    pool.do(lambda: pool.dispatcher.runner.hopeless("no node will come"))
    for future in futures:
        with pytest.raises(NodeLost, match="no node will come"):
            future.result(30)
    idle(pool)
    pool.close()
    with pytest.raises(PoolNotActive):
        submit(pool, shelf, double, 1)


@pytest.mark.parametrize("how", ["cancel_all", "withdraw_all", "close"])
def test_the_end_of_a_pool_cancels_those_that_wait(pool: MemoryPool, how: str) -> None:
    shelf = Shelf()
    futures = [submit(pool, shelf, double, 1) for _ in range(3)]
    if how == "close":
        pool.close()
    else:
        pool.do(getattr(pool.dispatcher, how))
    for future in futures:
        eventually(future.cancelled)
    if how != "close":
        idle(pool)

"""A pool in the place of an executor of the standard library: what `concurrent.futures` promises of those."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from skyward.core.events import TaskEnded, TasksQueued
from skyward.core.executor import TaskExecutor
from skyward.core.payload.exceptions import RemoteTraceback
from skyward.core.tasks.dispatch import Dispatcher
from tests.core.memory_agent import MemoryPool
from tests.lab.wait import eventually


@pytest.fixture(scope="module")
def pool() -> Iterator[sky.Compute]:
    with sky.Compute(concurrency=2, console=False) as pool:
        yield pool


def capture(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


def wait_for(path: str) -> str:
    """Begins, and ends when there is a file."""
    Path(f"{path}.began").touch()
    eventually(Path(path).exists, 30)
    return path


# --- submit ---


def test_it_is_one(pool: sky.Compute) -> None:
    """To as_completed, wait and asyncio too."""
    assert isinstance(pool, concurrent.futures.Executor)
    futures = [pool.submit(divmod, i, 7) for i in range(20)]
    assert {future.result() for future in concurrent.futures.as_completed(futures)} == {divmod(i, 7) for i in range(20)}
    done, rest = concurrent.futures.wait(
        [pool.submit(abs, -1), concurrent.futures.Future()], timeout=5, return_when="FIRST_COMPLETED"
    )
    assert (len(done), len(rest)) == (1, 1)

    async def run() -> int:
        return await asyncio.get_running_loop().run_in_executor(pool, pow, 2, 10)

    assert asyncio.run(run()) == 1024


def test_any_keyword_is_the_functions(pool: sky.Compute) -> None:
    """Also those that are names of submit's own arguments; the function itself is given by position only."""
    assert pool.submit(capture, 1, self=2, fn=3, options=4).result() == ((1,), {"self": 2, "fn": 3, "options": 4})
    with pytest.raises(TypeError):
        pool.submit(fn=capture, arg=1)  # type: ignore[call-overload]


def test_an_error_brings_its_traceback_from_over_there(pool: sky.Compute) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        pool.submit(divmod, 1, 0).result()
    assert isinstance(caught.value.__cause__, RemoteTraceback)


class Ends:
    """Raises when it is pickled, what is no Exception."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), ValueError("odd")], ids=repr)
def test_whatever_is_raised_while_pickling_is_in_the_future(pool: sky.Compute, error: BaseException) -> None:
    """submit itself raises nothing, and names the culprit."""
    future = pool.submit(len, [Ends(error)])
    with pytest.raises(sky.PayloadError, match=r"the call\[1\]\[0\]\[0\] .*Ends") as caught:
        future.result(30)
    assert caught.value.__cause__ is error
    assert pool.submit(Ends, error).exception(10) is not None


class Interrupted:
    """A signal comes while it is pickled."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        signal.raise_signal(self.number)
        return int, ()


def test_what_a_signal_raises_while_pickling_is_the_programs(pool: sky.Compute) -> None:
    """Ctrl-C, and a handler of SIGTERM that exits, must not end in a future."""
    with pytest.raises(KeyboardInterrupt):
        pool.submit(len, Interrupted(signal.SIGINT))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    try:
        with pytest.raises(SystemExit):
            pool.submit(len, Interrupted(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)


class Nameless:
    """A callable whose attributes can't be looked up."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)

    def __call__(self) -> int:
        return 1


def test_a_callable_with_a_broken_getattr_raises_in_its_future_only(pool: sky.Compute) -> None:
    with pytest.raises(ValueError, match="__qualname__"):
        pool.submit(Nameless()).result(30)


# --- map ---


@pytest.mark.parametrize("chunksize", [1, 3, 40, 50])
def test_map_is_map(pool: sky.Compute, chunksize: int) -> None:
    """Whatever the size of the chunks, with iterables of unequal length and with none at all."""
    assert list(pool.map(pow, range(40), range(40), chunksize=chunksize)) == list(map(pow, range(40), range(40)))
    assert list(pool.map(capture, [1, 2, 3], "ab", chunksize=chunksize)) == [((1, "a"), {}), ((2, "b"), {})]
    assert list(pool.map(abs, [], chunksize=chunksize)) == []


def process(_: int) -> tuple[int, int]:
    return os.getpid(), time.monotonic_ns()


def test_a_chunk_is_one_task(pool: sky.Compute) -> None:
    """Its calls run in one process, one after another."""
    queued: list[int] = []
    undo = pool.events.subscribe(lambda event: queued.append(event.count) if isinstance(event, TasksQueued) else None)
    found = list(pool.map(process, range(10), chunksize=4))
    undo()
    assert queued == [4, 4, 2]
    for chunk in (found[:4], found[4:8], found[8:]):
        assert len({pid for pid, _ in chunk}) == 1
        assert chunk == sorted(chunk)


def test_the_results_before_a_failure_come(pool: sky.Compute) -> None:
    results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("chunksize", [-1, 0, 2.5, "many", True, None])
def test_a_wrong_chunksize_is_an_error_before_anything_is_sent(pool: sky.Compute, chunksize: Any) -> None:
    """As a ValueError, which is what the standard library raises."""
    with pytest.raises(ValueError, match=f"chunksize={chunksize!r}"):
        pool.map(abs, iter(lambda: pytest.fail("was read"), None), chunksize=chunksize)


@pytest.mark.parametrize("timeout", ["soon", True, float("nan")])
def test_a_wrong_timeout_is_an_error(pool: sky.Compute, timeout: Any) -> None:
    with pytest.raises(sky.ConfigError, match=f"timeout={timeout!r} is not a number of seconds"):
        pool.map(abs, [1], timeout=timeout)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_timeout_of_map_ends_the_iteration_and_the_rest(pool: sky.Compute, chunksize: int) -> None:
    """What is there comes, late or not; tasks that nobody waits for any more are given up."""
    ended: list[int] = []
    undo = pool.events.subscribe(lambda event: ended.append(event.count) if isinstance(event, TaskEnded) else None)
    results = pool.map(time.sleep, [0, 0, 60, 60], timeout=0.2, chunksize=chunksize)
    eventually(lambda: sum(ended) == 2, 30)
    undo()
    assert [next(results), next(results)] == [None, None]
    with pytest.raises(TimeoutError):
        next(results)
    assert pool.submit(abs, -1).result(30) == 1


def test_a_map_that_is_not_read_to_its_end_ends_its_tasks(pool: sky.Compute) -> None:
    results = pool.map(time.sleep, [0, 60, 60, 60])
    assert next(results) is None
    del results
    assert pool.submit(abs, -1).result(30) == 1


def test_an_iterable_that_raises_ends_what_was_sent(pool: sky.Compute) -> None:
    def numbers() -> Iterator[int]:
        yield 60
        yield 60
        raise LookupError("no more")

    with pytest.raises(LookupError):
        pool.map(time.sleep, numbers())
    assert pool.submit(abs, -1).result(30) == 1


class Thing:
    pass


def make(_: int) -> Thing:
    return Thing()


@pytest.mark.slow
@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_keeps_no_result_that_was_handed_out(pool: sky.Compute, chunksize: int) -> None:
    for thing in pool.map(make, range(6), chunksize=chunksize):
        seen = weakref.ref(thing)
        del thing
        eventually(partial(_is_gone, seen))


def _is_gone(thing: weakref.ref[Thing]) -> bool:
    gc.collect()
    return thing() is None


def test_nothing_keeps_a_call_that_is_over(pool: sky.Compute) -> None:
    """Neither its function nor the future that nobody has."""
    thing = Thing()
    seen = weakref.ref(thing)
    pool.submit(partial(capture, thing))
    del thing
    eventually(partial(_is_gone, seen))


# --- whose error ---


class InMemory(TaskExecutor):
    """An executor on nodes whose answers the test gives."""

    def __init__(self, pool: MemoryPool) -> None:
        self._dispatcher = pool.dispatcher

    @property
    def dispatcher(self) -> Dispatcher:
        return self._dispatcher

    @property
    def node_names(self) -> list[str]:
        return []


@sky.compute
def fail(number: int) -> None:
    raise ValueError(number)


@pytest.mark.parametrize("way", ["gather", "map"])
def test_of_several_failures_the_first_in_order_is_raised(way: str) -> None:
    """Not the one that happened to be heard of first."""
    memory = MemoryPool()
    try:
        agent = memory.add(slots=5, holding=True)
        executor = InMemory(memory)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            if way == "gather":
                caller = threads.submit(lambda: sky.gather(*map(fail, range(1, 6))) >> executor)
            else:
                caller = threads.submit(lambda: list(executor.map(fail, range(1, 6))))
            eventually(lambda: len(agent.held) == 5)
            memory.do(lambda: [agent.answer(task) for task in (5, 3, 2, 4) if way == "gather" or task != 2])
            memory.do(agent.flush)
            if way == "map":  # reads in order, so it waits for those before
                memory.do(lambda: [agent.answer(task) for task in (2, 1)])
                memory.do(agent.flush)
            with pytest.raises(ValueError, match="2" if way == "gather" else "1"):
                caller.result(30)
    finally:
        memory.close()


# --- the end ---


def opened(concurrency: int = 1, kind: Any = "process") -> sky.Compute:
    return sky.Compute(worker=sky.Worker(concurrency=concurrency, executor=kind), console=False).start()


def test_after_shutdown_nothing_is_taken() -> None:
    """A RuntimeError, as of any executor; it may be shut down again."""
    pool = opened()
    futures = [pool.submit(time.sleep, 0.01) for _ in range(20)]
    pool.shutdown()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(RuntimeError):
        pool.submit(pow, 2, 5)
    with pytest.raises(RuntimeError):
        pool.map(abs, [1])
    pool.shutdown(wait=False, cancel_futures=True)
    pool.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["process", "thread"])
def test_shutdown_with_cancel_futures_lets_running_calls_finish(kind: str, tmp_path: Path) -> None:
    """Those that had not begun are cancelled, here and on the node, and it waits for the others."""
    pool = opened(2, kind)
    pool.submit(time.sleep, 0.001).result()  # short, so that the node holds tasks ahead
    paths = [str(tmp_path / str(number)) for number in range(2)]
    running = [pool.submit(wait_for, path) for path in paths]
    waiting = [pool.submit(time.sleep, 0) for _ in range(20)]
    eventually(lambda: all(future.running() for future in running), 30)
    assert not any(future.running() for future in waiting)
    pool.shutdown(wait=False, cancel_futures=True)
    concurrent.futures.wait(waiting, 30)
    assert all(future.cancelled() for future in waiting)
    assert all(future.running() for future in running)
    for path in paths:
        Path(path).touch()
    pool.shutdown()
    assert [future.result(0) for future in running] == paths


def test_cancel_stops_a_call_that_runs(pool: sky.Compute, tmp_path: Path) -> None:
    """Which executors of the standard library can't: it says so, and the slot serves the next."""
    future = pool.submit(wait_for, str(tmp_path / "never"))
    eventually(future.running, 30)
    assert future.cancel()
    assert future.cancelled()
    assert not future.running()
    assert pool.submit(abs, -1).result(30) == 1


@pytest.mark.slow
def test_concurrent_shutdowns(tmp_path: Path) -> None:
    """From a callback, from another thread and within the block: all return when the pool has ended."""
    path = str(tmp_path / "end")
    with sky.Compute(console=False) as pool, concurrent.futures.ThreadPoolExecutor(2) as threads:
        future = pool.submit(wait_for, path)
        called = concurrent.futures.Future[None]()
        future.add_done_callback(lambda _: called.set_result(pool.shutdown()))
        ending = threads.submit(pool.shutdown)
        Path(path).touch()
        pool.shutdown()
        ending.result(30)
        called.result(30)
    assert future.result(0) == path


def test_a_callback_may_submit_and_may_raise(pool: sky.Compute) -> None:
    """Neither holds up the others."""
    inner: list[concurrent.futures.Future[int]] = []

    def more(_: Any) -> None:
        inner.append(pool.submit(abs, -2))
        raise ValueError("in a callback")

    pool.submit(abs, -1).add_done_callback(more)
    eventually(lambda: inner and inner[0].done())
    assert inner[0].result() == 2


@pytest.mark.slow
def test_shutdown_without_waiting(tmp_path: Path) -> None:
    """It returns at once, takes nothing more, and what was submitted is done; a second one may wait."""
    pool = opened()
    path = str(tmp_path / "end")
    futures = [pool.submit(wait_for, path) for _ in range(3)]
    pool.shutdown(wait=False)
    assert not any(future.done() for future in futures)
    with pytest.raises(RuntimeError):
        pool.submit(abs, 1)
    Path(path).touch()
    pool.shutdown()
    assert [future.result(0) for future in futures] == [path] * 3


@pytest.mark.slow
def test_a_pool_that_is_dropped_finishes_what_was_submitted(tmp_path: Path) -> None:
    pool = opened()
    path = str(tmp_path / "end")
    future = pool.submit(wait_for, path)
    del pool
    gc.collect()
    Path(path).touch()
    assert future.result(30) == path


@pytest.mark.slow
def test_a_call_that_was_cancelled_just_before_shutdown() -> None:
    pool = opened()
    pool.submit(int).result()
    pool.submit(int).cancel()
    pool.shutdown()

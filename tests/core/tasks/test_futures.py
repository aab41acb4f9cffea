"""A task's future can be cancelled while the task runs, which futures of the standard library can't."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys

import pytest

from skyward.core.tasks.futures import TaskFuture


@pytest.fixture
def cancelled() -> list[int]:
    """Tasks for which the dispatcher was asked to stop."""
    return []


@pytest.fixture
def future(cancelled: list[int]) -> TaskFuture[int]:
    return TaskFuture(cancelled.append, 7)


def test_cancelling_stops_the_task_once(future: TaskFuture[int], cancelled: list[int]) -> None:
    future.began = True
    assert future.running()
    assert future.cancel()
    assert future.cancel(), "as with those of the standard library"
    assert cancelled == [7]
    assert not future.running()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()


def test_a_callback_that_exits_keeps_no_task_running(future: TaskFuture[int], cancelled: list[int]) -> None:
    future.add_done_callback(lambda _: sys.exit("from a callback"))
    with pytest.raises(SystemExit, match="from a callback"):
        future.cancel()
    assert cancelled == [7]


def test_what_is_done_is_not_cancelled(future: TaskFuture[int], cancelled: list[int]) -> None:
    future.set_running_or_notify_cancel()
    future.set_result(3)
    assert not future.cancel()
    assert cancelled == []
    assert future.result() == 3


def test_the_standard_library_waits_for_it(future: TaskFuture[int]) -> None:
    other: TaskFuture[int] = TaskFuture(lambda _: None, 8)
    other.set_running_or_notify_cancel()
    other.set_result(1)
    done, pending = concurrent.futures.wait([future, other], return_when=concurrent.futures.FIRST_COMPLETED)
    assert (done, pending) == ({other}, {future})
    assert next(concurrent.futures.as_completed([future, other])) is other


def test_coroutines_wait_for_it(future: TaskFuture[int], cancelled: list[int]) -> None:
    """One that is cancelled cancels the task."""

    async def main() -> int:
        asyncio.get_running_loop().call_soon(future.set_result, 3)
        other: TaskFuture[int] = TaskFuture(cancelled.append, 8)
        waiting = asyncio.ensure_future(asyncio.wait_for(other, 0.01))
        with pytest.raises(TimeoutError):
            await waiting
        return await future

    assert asyncio.run(main()) == 3
    assert cancelled == [8]


def test_a_future_says_what_it_is_of_and_how_it_is(future: TaskFuture[int]) -> None:
    future.label = "fit"
    assert repr(future) == "<TaskFuture of fit: waiting>"
    future.began = True
    assert repr(future) == "<TaskFuture of fit: running>"
    future.seconds = 1.25
    future.set_result(3)
    assert repr(future) == "<TaskFuture of fit: done, int>"
    assert "<td>fit</td><td>done, int</td><td>1.25 s</td>" in future._repr_html_()


def test_a_future_that_failed_says_why(future: TaskFuture[int]) -> None:
    future.label = "<lambda>"
    future.set_exception(ValueError("C must be positive\nand so on"))
    assert repr(future) == "<TaskFuture of <lambda>: failed: ValueError: C must be positive>"
    assert "<td>&lt;lambda&gt;</td>" in future._repr_html_()
    other: TaskFuture[int] = TaskFuture(lambda _: None, 8)
    other.cancel()
    assert repr(other).endswith(": cancelled>")

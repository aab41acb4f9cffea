"""Answers wait for a round of saving that began after their tasks had ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from skyward.worker.held_answers import HeldAnswers


class Saving:
    """Saves when it is told to."""

    def __init__(self) -> None:
        self.rounds: list[frozenset[int] | None] = []
        self.loop = asyncio.get_running_loop()
        self.begun = asyncio.Queue[None]()
        self.go = threading.Semaphore(0)
        self.problem: str | None = None

    def save(self, groups: frozenset[int] | None) -> str | None:
        self.rounds.append(groups)
        self.loop.call_soon_threadsafe(self.begun.put_nowait, None)
        assert self.go.acquire(timeout=30)
        if self.problem == "bug":
            raise ZeroDivisionError
        return self.problem


def note(where: list[tuple[int, str | None]], task: int) -> Callable[[str | None], None]:
    return lambda problem: where.append((task, problem))


def test_tasks_that_end_meanwhile_are_saved_together() -> None:
    async def run() -> None:
        saving, told = Saving(), list[tuple[int, str | None]]()
        held = HeldAnswers(saving.loop, saving.save)
        held.hold(1, 10, note(told, 1))
        await saving.begun.get()
        for task in (2, 3, 4):
            held.hold(task, 20 + task % 2, note(told, task))
        assert 1 in held
        assert 4 in held
        saving.go.release()
        await saving.begun.get()
        assert told == [(1, None)]
        saving.problem = "full"
        flushed = asyncio.ensure_future(held.flush())
        await asyncio.sleep(0)
        saving.go.release()
        await saving.begun.get()
        assert told == [(1, None), (2, "full"), (3, "full"), (4, "full")]
        assert 4 not in held
        saving.problem = None
        saving.go.release()
        assert await flushed is None
        assert saving.rounds == [frozenset({10}), frozenset({20, 21}), None]

    asyncio.run(run())


def test_an_unexpected_error_is_an_answer_and_is_reported() -> None:
    async def run() -> None:
        saving, reported = Saving(), list[BaseException]()
        saving.loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
        held = HeldAnswers(saving.loop, saving.save)
        saving.problem = "bug"
        saving.go.release()
        assert await held.flush() == "unexpected error: ZeroDivisionError: "
        assert [type(error) for error in reported] == [ZeroDivisionError]
        saving.problem = None
        saving.go.release()
        assert await held.flush() is None

    asyncio.run(run())


def test_a_task_whose_process_is_not_known_counts_as_any() -> None:
    async def run() -> None:
        saving, told = Saving(), list[tuple[int, str | None]]()
        held = HeldAnswers(saving.loop, saving.save)
        saving.go.release(2)
        held.hold(1, None, note(told, 1))
        assert await held.flush() is None
        assert saving.rounds == [None]

    asyncio.run(run())

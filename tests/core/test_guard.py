"""Callbacks and background tasks that fail are told to somebody."""

from __future__ import annotations

import asyncio

from skyward.core.guard import guarded, watched


def test_only_an_error_of_a_callback_or_a_task_is_reported() -> None:
    told: list[str] = []

    def tell(error: Exception) -> None:
        told.append(str(error))

    async def fail(text: str) -> None:
        raise ValueError(text)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(guarded, tell, int, "one")
        loop.call_soon(guarded, tell, int, "1")
        tasks = [loop.create_task(fail("two")), loop.create_task(asyncio.sleep(60)), loop.create_task(asyncio.sleep(0))]
        for task in tasks:
            watched(task, tell)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert told == ["invalid literal for int() with base 10: 'one'", "two"]

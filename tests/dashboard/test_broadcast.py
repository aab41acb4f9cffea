"""Messages reach every browser, and a slow one holds up nobody."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from skyward.core.events import NodeReady, Printed, TaskEnded
from skyward.core.status import PoolStatus
from skyward.dashboard.broadcast import Broadcast
from skyward.dashboard.feed import Feed
from skyward.dashboard.recording import Recording


class Stage:
    """A broadcast, and how often the pool was asked for its status. Its CPU clock steps whenever it is read."""

    def __init__(self, step: float = 0.0) -> None:
        self.asked = 0
        cpu = itertools.count(0.0, step)
        self.state = "running"
        self.recording = Recording(time.monotonic())
        feed = Feed(self.recording, "p", 0.0)
        self.broadcast = Broadcast(self.recording, feed, self.status, lambda: self.state, 0.001, lambda: next(cpu))

    def status(self) -> PoolStatus:
        self.asked += 1
        return PoolStatus("p")

    def task(self, count: int = 1) -> None:
        now = time.monotonic()
        self.recording.put(TaskEnded(count, 0.01, ok=True, node="a", slot=0, label="f", started=now))


async def take(messages: AsyncIterator[str]) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(anext(messages), 30))
    return message


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.001)


def test_the_pool_is_asked_only_while_somebody_looks() -> None:
    async def run() -> None:
        stage = Stage()
        running = asyncio.create_task(stage.broadcast.run())
        stage.task()
        await until(lambda: len(stage.recording.blocks) == 1)  # it goes on recording
        assert stage.asked == 0
        messages = stage.broadcast.messages()
        assert (await take(messages))["whole"] is True
        await take(messages)
        await messages.aclose()  # type: ignore[attr-defined]
        asked = stage.asked
        assert asked >= 2
        stage.task(2)
        await until(lambda: sum(stage.recording.bins.done) == 3)
        assert stage.asked == asked
        stage.broadcast.end()
        await running

    asyncio.run(run())


def test_what_a_browser_knows_from_the_first_message_is_not_sent_again() -> None:
    async def run() -> None:
        stage = Stage()
        running = asyncio.create_task(stage.broadcast.run())
        stage.task()
        stage.recording.handle(Printed("a", 1, "hello\n"), time.monotonic())
        messages = stage.broadcast.messages()
        first = await take(messages)
        assert (first["labels"], len(first["rows"]), len(first["lines"])) == (["f"], 1, 1)
        for _ in range(3):
            assert not {"labels", "rows", "lines", "nodes", "blocks"} & set(await take(messages))
        stage.broadcast.end()
        await running

    asyncio.run(run())


def test_who_joins_late_knows_the_same_and_the_end_is_told_to_all() -> None:
    async def run() -> None:
        stage = Stage()
        running = asyncio.create_task(stage.broadcast.run())
        first = stage.broadcast.messages()
        counts = [0, 0]
        assert "blocks" in await take(first)
        stage.task()
        while counts[0] < 1:
            counts[0] += sum((await take(first)).get("blocks", [[]] * 6)[5])
        second = stage.broadcast.messages()
        counts[1] += sum((await take(second))["blocks"][5])
        assert counts == [1, 1]
        stage.state = "ended"
        stage.broadcast.end()
        for messages in (first, second):
            last = None
            async for text in messages:
                last = json.loads(text)
            assert last is not None
            assert last["state"] == "ended"
        await running

    asyncio.run(run())


def test_a_browser_that_does_not_read_begins_anew_and_holds_up_nobody() -> None:
    async def run() -> None:
        stage = Stage()
        running = asyncio.create_task(stage.broadcast.run())
        slow, quick = stage.broadcast.messages(), stage.broadcast.messages()
        await take(slow)
        await take(quick)
        for _ in range(40):
            await take(quick)
        stage.recording.handle(NodeReady("late", 1), time.monotonic())
        while "nodes" not in await take(quick):
            pass
        told = await take(slow)
        assert told["whole"] is True
        assert [node["name"] for node in told["nodes"]] == ["late"]
        assert "whole" not in await take(slow)
        stage.broadcast.end()
        await running

    asyncio.run(run())


def test_messages_that_cost_more_come_less_often() -> None:
    async def run() -> None:
        stage = Stage(step=30e-6)
        running = asyncio.create_task(stage.broadcast.run())
        assert stage.broadcast.pause == 0.001
        messages = stage.broadcast.messages()
        for _ in range(20):
            await take(messages)
        assert 0.0099 < stage.broadcast.pause <= 0.01  # 30 µs are 0.3 % of that
        await messages.aclose()  # type: ignore[attr-defined]
        await until(lambda: stage.broadcast.pause == 0.001)  # nobody looks
        stage.broadcast.end()
        await running

    asyncio.run(run())


def test_only_so_many_browsers_may_join() -> None:
    async def run() -> None:
        stage = Stage()
        joined = [stage.broadcast.messages() for _ in range(20)]
        for messages in joined:
            assert not stage.broadcast.is_full
            await take(messages)
        assert stage.broadcast.is_full
        await joined[0].aclose()  # type: ignore[attr-defined]
        assert not stage.broadcast.is_full

    asyncio.run(run())

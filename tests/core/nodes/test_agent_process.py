"""An agent that nobody greets is ended: a pool may end at any moment of a node's start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from skyward.core.errors import LinkError
from skyward.core.interfaces import CommandOutput
from skyward.core.nodes.agent_process import Announcement, end_agent, end_if_cancelled

LINE = '@info x\n{"listening": "unix:/run/a", "pid": 17}\n'


class Machine:
    """Its shell records what is run, and answers the start when it is let."""

    def __init__(self, stdout: str = LINE, error: Exception | None = None) -> None:
        self.ran: list[str] = []
        self.asked, self.answers = asyncio.Event(), asyncio.Event()
        self.stdout, self.error = stdout, error

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> CommandOutput:
        self.ran.append(command)
        self.asked.set()
        if command == "start":
            await self.answers.wait()
            if self.error is not None:
                raise self.error
        return CommandOutput(0, self.stdout, "")

    async def put(self, data: bytes, path: str) -> None:
        raise NotImplementedError


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_start_that_nobody_cancels_ends_nothing() -> None:
    async def scene() -> None:
        machine = Machine()
        machine.answers.set()
        done = await end_if_cancelled(machine, machine.run("start"))
        assert Announcement.read(done) == ("/run/a", 17)
        assert machine.ran == ["start"]

    play(scene)


@pytest.mark.parametrize("first", ["answer", "cancel"])
def test_what_starts_while_the_caller_is_cancelled_is_ended(first: str) -> None:
    """Whether the answer was already on its way or comes later."""

    async def scene() -> None:
        machine = Machine()
        start = asyncio.create_task(end_if_cancelled(machine, machine.run("start")))
        await machine.asked.wait()
        if first == "answer":
            machine.answers.set()
            start.cancel()
        else:
            start.cancel()
            await asyncio.sleep(0)
            machine.answers.set()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert machine.ran == ["start", "kill 17"]

    play(scene)


@pytest.mark.parametrize("machine", [{"stdout": "python: not found\n"}, {"error": LinkError("gone")}, {"stdout": ""}])
def test_a_start_that_failed_has_started_nothing(machine: dict[str, Any]) -> None:
    async def scene() -> None:
        failing = Machine(**machine)
        start = asyncio.create_task(end_if_cancelled(failing, failing.run("start")))
        await failing.asked.wait()
        start.cancel()
        failing.answers.set()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert failing.ran == ["start"]

    play(scene)


def test_errors_of_the_start_are_the_callers() -> None:
    async def scene() -> None:
        machine = Machine(error=LinkError("gone"))
        machine.answers.set()
        with pytest.raises(LinkError, match="gone"):
            await end_if_cancelled(machine, machine.run("start"))

    play(scene)


def test_a_line_that_is_broken_ends_no_agent_and_is_no_error() -> None:
    class Broken(Machine):
        async def run(self, command: str, **_: Any) -> CommandOutput:
            raise LinkError("gone")

    play(lambda: end_agent(Broken(), 17))


@pytest.mark.parametrize("text", ["", "no", "[1]", '{"listening": "unix:/a"}', '{"listening": "unix:/a", "pid": "x"}'])
def test_what_is_no_announcement(text: str) -> None:
    with pytest.raises(ValueError):
        Announcement.read(CommandOutput(0, text, ""))

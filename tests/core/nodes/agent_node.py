"""A real agent in the test's own event loop, and a session with it over loopback."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from skyward.core.errors import HostUnreachable, LinkError
from skyward.core.interfaces import Channel
from skyward.core.nodes.agent_link import Stripes
from skyward.core.nodes.session import Session
from skyward.core.nodes.timing import Timing
from skyward.core.protocol.messages import Blob, Message, Setup
from skyward.core.spec import Endpoint
from skyward.transport.tcp import TCPTransport
from skyward.worker.agent import Agent, Start
from skyward.worker.agent_socket import listen

__all__ = ["MEGABYTE", "SETUP", "Node", "blob", "over"]

SETUP = Setup("n", 1, False, None, {}, [], None, [], [], 60.0)
MEGABYTE = 1 << 20
TIMING = Timing(beat=0.05, give_up=5.0)


class Tap:
    """A channel that counts what is written, and can be held shut."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.read, self.close = channel.read, channel.close
        self.written = 0
        self.shut = False
        self.opened = asyncio.Event()

    def write(self, buffers: Any) -> None:
        self.written += sum(map(len, buffers))
        self.channel.write(buffers)

    @property
    def congested(self) -> bool:
        return self.shut or self.channel.congested

    async def drain(self) -> None:
        while self.shut:
            await self.opened.wait()
        await self.channel.drain()


class Node:
    """An agent, the session with it, and the channels between them."""

    def __init__(self, agent: Agent, address: str) -> None:
        self.agent = agent
        self.address = address
        self.channels: list[Tap] = []
        self.refuse = False
        self.unreachable = 0  # for so many attempts more
        self.ready = asyncio.Event()
        self.session: Session
        self.life: asyncio.Task[str | None]

    async def open(self) -> Channel:
        """What a connector does."""
        if self.refuse and self.channels:
            raise LinkError("no more than one channel")
        if self.unreachable and self.channels:
            self.unreachable -= 1
            raise HostUnreachable("simulated: the line is down")
        link = await TCPTransport().connect(Endpoint("tcp", "127.0.0.1"), 5.0)
        self.channels.append(Tap(await link.open_channel(self.address)))
        return self.channels[-1]  # type: ignore[return-value]

    def received(self, session: Session, message: Message, buffers: list[Any]) -> None:
        """Hear the session."""

    async def until(self, condition: Callable[[], Any]) -> None:
        """Let the loop turn until something holds."""
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - of any kind, also the agent's
                await asyncio.sleep(0.005)

    async def sent(self) -> None:
        """The agent has all."""
        await self.until(lambda: self.session._outbox.acknowledged == self.session._outbox.last)


async def _end(agent: Agent) -> None:
    """What the agent's own process does."""
    await agent.stopped
    await agent.end()


@asynccontextmanager
async def node(timing: Timing = TIMING, **stripes: Any) -> AsyncIterator[Node]:
    """A node whose session stripes however short the way is."""
    loop = asyncio.get_running_loop()
    listener, address, folder = listen("tcp")
    it = Node(Agent(loop, Start("tcp", b"s", True, 60.0), listener, folder), address)
    striping = Stripes(it.open, **{"count": 2, "distance": 0.0, "backlog": MEGABYTE, **stripes})
    it.session = Session("n", it.open, b"s", SETUP, it, lambda *_: it.ready.set(), timing, striping)
    it.life = life = asyncio.create_task(it.session.run())
    end = asyncio.create_task(_end(it.agent))
    try:
        async with asyncio.timeout(60):
            await it.ready.wait()
            await it.until(lambda: it.session.round_trip is not None)
            yield it
            await it.session.close()
            if not life.cancelled():
                await life
    finally:
        life.cancel()
        it.agent.stop("the test is over")
        await end
        shutil.rmtree(folder, ignore_errors=True)


def over(**stripes: Any) -> Callable[[Callable[[Node], Awaitable[None]]], Callable[[], None]]:
    """A test with a node."""

    def make(test: Callable[[Node], Awaitable[None]]) -> Callable[[], None]:
        async def main() -> None:
            async with node(**stripes) as it:
                await test(it)

        def run() -> None:
            coroutine: Coroutine[Any, Any, None] = main()
            asyncio.run(coroutine)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return make


def blob(it: Node, name: bytes, size: int, *, shrinks: bool = False) -> None:
    """Send something large, which can be compressed or can't be."""
    it.session.send(Blob(name, size, 0), [bytes(size) if shrinks else os.urandom(size)])

"""A session gets stripes when they are worth it, writes each message where it belongs, and survives their loss.

With a real agent, in the test's own event loop, over loopback.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import LinkError, NodeLost
from skyward.core.interfaces import Channel
from skyward.core.nodes.agent_link import Stripes
from skyward.core.nodes.session import Session
from skyward.core.nodes.timing import Timing, link_patience
from skyward.core.protocol.messages import Ack, Blob, Done, Failed, Message, Returned, Setup, StreamOpen
from skyward.core.spec import Endpoint
from skyward.transport.tcp import TCPTransport
from skyward.worker.agent import Agent, Start, listen
from tests.core.memory_agent import MemoryAgent, MemoryPool

SETUP = Setup("n", 1, False, None, {}, [], None, [], [], 60.0)
MEGABYTE = 1 << 20


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
        self.ready = asyncio.Event()
        self.session: Session
        self.life: asyncio.Task[str | None]

    async def open(self) -> Channel:
        """What a connector does."""
        if self.refuse and self.channels:
            raise LinkError("no more than one channel")
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
async def node(**stripes: Any) -> AsyncIterator[Node]:
    """A node whose session stripes however short the way is."""
    loop = asyncio.get_running_loop()
    listener, address, folder = listen("tcp")
    it = Node(Agent(loop, Start("tcp", b"s", True, 60.0), listener, folder), address)
    striping = Stripes(it.open, **{"count": 2, "distance": 0.0, "backlog": MEGABYTE, **stripes})
    timing = Timing(beat=0.05, give_up=5.0)
    it.session = Session("n", it.open, b"s", SETUP, it, lambda *_: it.ready.set(), timing, striping)
    it.life = life = asyncio.create_task(it.session.run())
    end = asyncio.create_task(_end(it.agent))
    try:
        async with asyncio.timeout(60):
            await it.ready.wait()
            await it.until(lambda: it.session.round_trip is not None)
            yield it
            await it.session.close()
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


@over()
async def test_much_to_send_goes_over_stripes_and_small_messages_do_not(it: Node) -> None:
    """The first channel carries no more of large messages once there are stripes."""
    blob(it, b"a", 64 * MEGABYTE)
    await it.sent()
    assert len(it.channels) == 3
    before = [channel.written for channel in it.channels]
    blob(it, b"b", 16 * MEGABYTE)
    await it.sent()
    first, *stripes = (channel.written - b for channel, b in zip(it.channels, before, strict=True))
    assert first < 10_000
    assert 16 * MEGABYTE < sum(stripes) < 16.1 * MEGABYTE
    assert all(channel.written > 10_000 for channel in it.channels)


@over()
async def test_what_shrinks_is_packed_where_the_line_is_slow(it: Node) -> None:
    """Once the pace of the link is known; and the agent gets what was sent."""
    it.session._link.rate_meter.rate = 1e6  # once told, it changes by halves at most
    blob(it, b"a", 64 * MEGABYTE, shrinks=True)
    await it.sent()
    assert sum(channel.written for channel in it.channels) < 2 * MEGABYTE


@over(distance=10.0)
async def test_nearby_there_are_no_stripes(it: Node) -> None:
    """They are opened only where the round trip is long enough for one channel to be slow."""
    blob(it, b"a", 32 * MEGABYTE)
    await it.sent()
    assert len(it.channels) == 1


@over()
async def test_small_messages_pass_while_stripes_are_full(it: Node) -> None:
    """However long large messages wait, the first channel is free."""
    blob(it, b"a", 32 * MEGABYTE)
    await it.sent()
    for channel in it.channels:
        channel.shut = True  # the whole line is full
    blob(it, b"b", 32 * MEGABYTE)
    accepted = it.agent.session.inbox._early  # type: ignore[union-attr]
    blob(it, b"c", 10)
    await it.until(lambda: accepted)
    assert it.session._outbox.size == 32 * MEGABYTE + 10
    for channel in it.channels:
        channel.shut = False
        channel.opened.set()
    await it.sent()


@over()
async def test_stripes_that_are_refused_leave_the_link_as_it_is(it: Node) -> None:
    """A machine that allows one channel serves as before."""
    it.refuse = True
    blob(it, b"a", 64 * MEGABYTE)
    await it.sent()
    assert len(it.channels) == 1


@over()
async def test_an_error_in_an_agents_background_reaches_the_owner(it: Node) -> None:
    """The link breaks, for what was going on there may have to be said again; at the second time the node is lost."""
    agent = it.agent
    agent.loop.call_soon(int, "first")
    await it.until(lambda: len(it.channels) == 2 and it.session.linked)
    assert it.session.facts["fault"] == "ValueError: invalid literal for int() with base 10: 'first'"
    blob(it, b"a", 10)
    await it.sent()
    agent.loop.call_soon(int, "second")
    await it.until(lambda: len(it.channels) == 3 and it.session.linked)
    agent.loop.call_soon(int, "third")
    reason = await it.life
    assert reason == (
        "its link broke 2 times after an error, without progress in between: "
        "its agent: ValueError: invalid literal for int() with base 10: 'third'"
    )


class Clumsy(MemoryPool):
    """Its handler fails at some messages."""

    def __init__(self, failures: int) -> None:
        super().__init__(attempts=1)
        self.left = failures
        self.received, self.dispatcher.received = self.dispatcher.received, self.hear  # type: ignore[method-assign]

    def hear(self, session: Session, message: Message, buffers: list[Any]) -> None:
        """As the dispatcher, when it does not fail."""
        if isinstance(message, Done) and self.left:
            self.left -= 1
            raise KeyError("unexpected")
        self.received(session, message, buffers)


def test_an_unexpected_error_of_ours_loses_no_message() -> None:
    """The link breaks, and the node says again what could not be handled."""
    pool = Clumsy(1)
    agent = pool.add()
    assert [pool.submit(abs, -number).result(5) for number in range(5)] == list(range(5))
    assert agent.links == 2
    pool.close()


def test_an_unexpected_error_that_repeats_loses_the_node_with_its_text() -> None:
    pool = Clumsy(99)
    agent = pool.add()
    with pytest.raises(
        NodeLost, match=r"abs \(task 1\) is lost with m0: .* without progress in between: KeyError: 'unexpected'"
    ):
        pool.submit(abs, -1).result(10)
    assert agent.links == 3
    pool.close()


def _unnumbered(agent: MemoryAgent) -> None:
    assert agent._wire is not None
    agent._wire.send(Done(1, 0.1), [b"x"])


def _beyond(agent: MemoryAgent) -> None:
    assert agent._wire is not None
    agent._wire.send(Ack(10**6))


def _garbage(agent: MemoryAgent) -> None:
    assert agent._channel is not None
    agent._channel.write([b"\xff" * 100])


NONSENSE: dict[str, tuple[Callable[[MemoryAgent], object], str]] = {
    "unknown reason": (lambda agent: agent.say(Failed(1, 0.1, "no-such", "")), "not a sensible Failed"),
    "seconds": (lambda agent: agent.say(Done(1, math.nan), [b"x"]), "not a sensible Done"),
    "a task it was never given": (lambda agent: agent.say(Done(7, 0.1), [b"x"]), "task 7, which was never sent there"),
    "back, unasked": (
        lambda agent: agent.say(Returned([1])),
        r"tasks \[1\] are returned, which were not asked for",
    ),
    "over no limit": (
        lambda agent: agent.say(Failed(1, 0.1, "timeout", "")),
        "task 1 is over its time limit, but has none",
    ),
    "gives up, unasked": (
        lambda agent: agent.say(Failed(1, 0.1, "cancelled", "")),
        "task 1 is cancelled, which was not asked for",
    ),
    "without a number": (_unnumbered, "Done without a number"),
    "has what was never sent": (_beyond, "acknowledges message 1000000, but only 2 were sent"),
    "garbage": (_garbage, "not a piece of this protocol"),
    "a stream twice": (
        lambda agent: [agent.say(StreamOpen(1, "/tmp/pymp-x/l")) for _ in range(2)],
        "stream 1 is opened twice",
    ),
    "nothing, again and again": (MemoryAgent.cut, "its link broke 5 times in a row as soon as it was made"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_what_a_node_says_wrong_loses_it_with_the_reason(what: str) -> None:
    """In words that name the node; and its task is not waited for."""
    evil, text = NONSENSE[what]
    pool = MemoryPool(attempts=1)
    pool.add(evil=evil)
    with pytest.raises(NodeLost, match=rf"abs \(task 1\) is lost with m0: .*{text}"):
        pool.submit(abs, -1).result(20)
    pool.close()


def test_what_an_agent_breaks_links_for_is_in_the_reason() -> None:
    pool = MemoryPool(attempts=1)
    agent = pool.add(evil=MemoryAgent.cut)
    agent.fault = "KeyError: 'there'"
    with pytest.raises(NodeLost, match=r"lost with m0: its link broke 2 times .*: its agent: KeyError: 'there'"):
        pool.submit(abs, -1).result(10)
    pool.close()


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_the_loss_of_any_channel_loses_no_message(victim: int) -> None:
    """The session makes another link, with stripes of its own, and sends again what was not acknowledged."""

    @over()
    async def test(it: Node) -> None:
        blob(it, b"a", 64 * MEGABYTE)
        await it.until(lambda: it.session._link is not None and it.session._link.stripes)
        it.channels[victim].close()
        blob(it, b"b", 64 * MEGABYTE)
        await it.sent()
        assert len(it.channels) == 6
        assert all(channel.channel._ended for channel in it.channels[:3])  # type: ignore[attr-defined]
        assert it.agent.session.inbox.received == 3  # type: ignore[union-attr]

    test()


@over()
async def test_a_session_ends_with_its_stripes(it: Node) -> None:
    """Goodbye is said on the first channel; nothing stays open."""
    blob(it, b"a", 64 * MEGABYTE)
    await it.until(lambda: it.session._link is not None and it.session._link.stripes)
    await it.session.close()
    await it.until(lambda: all(channel.channel._ended for channel in it.channels))  # type: ignore[attr-defined]


@given(st.lists(st.floats(0, 1000), max_size=5), st.floats(30, 1000))
def test_how_long_a_node_is_waited_for(others: list[float], orphans: float) -> None:
    """Briefly while others are there all the time, long while the line from here may be down, as agents do."""
    timing = Timing()
    limit = link_patience(timing, orphans, others)
    if not others:
        assert limit == timing.give_up
    elif max(others) >= timing.give_up_alone:
        assert limit == timing.give_up_alone
    else:
        assert timing.give_up <= limit <= max(timing.give_up, orphans)
        assert limit <= timing.give_up_all

"""A session breaks its link after errors at either end, and gives the node up, with the reason, if they repeat."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from skyward.core.errors import NodeLost
from skyward.core.nodes.session import Session
from skyward.core.nodes.timing import Timing
from skyward.core.protocol.messages import Ack, Done, Failed, Message, Pong, Returned, StreamOpen
from tests.core.memory_agent import MemoryAgent, MemoryPool
from tests.core.nodes.agent_node import SETUP, Node, blob, over


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


@over()
async def test_an_agent_that_was_greeted_waits_for_its_owner_as_long_as_it_may(it: Node) -> None:
    assert it.agent._patience == SETUP.orphan_timeout == 60.0


# --- the end ---


async def _goodbye_is_heard(it: Node) -> None:
    await asyncio.wait_for(it.session.close(), 20)
    assert await it.agent.stopped == "the owner said goodbye"
    assert await it.life is None


@over()
async def test_the_agent_answers_the_goodbye(it: Node) -> None:
    """So the session need not ask again."""
    await _goodbye_is_heard(it)
    assert len(it.channels) == 1


@over()
async def test_a_goodbye_while_there_is_no_link_waits_for_the_next(it: Node) -> None:
    """The agent would otherwise stay until it takes itself for an orphan."""
    it.unreachable = 3
    it.session.break_link()
    await it.until(lambda: not it.session.linked)
    await _goodbye_is_heard(it)


@over()
async def test_a_goodbye_on_a_link_that_has_just_broken_is_said_again(it: Node) -> None:
    it.session.break_link()
    assert it.session.linked, "the session has not seen it yet"
    await _goodbye_is_heard(it)


@over()
async def test_a_goodbye_that_is_lost_on_the_way_is_said_again(it: Node) -> None:
    for channel in it.channels:
        channel.write = lambda _: None  # type: ignore[method-assign]
    await _goodbye_is_heard(it)


@over()
async def test_a_node_that_is_given_up_while_there_is_no_link_hears_it_too(it: Node) -> None:
    it.unreachable = 1
    it.session.break_link()
    await it.until(lambda: not it.session.linked)
    it.session.abandon("no task succeeds there")
    assert await asyncio.wait_for(it.life, 20) == "no task succeeds there"
    assert await it.agent.stopped == "the owner said goodbye"


@over()
async def test_a_node_that_is_given_up_as_its_pool_ends_hears_it_once(it: Node) -> None:
    """The end of the pool does not hang up on the goodbye that is on its way."""
    it.session.abandon("no task succeeds there")
    await asyncio.wait_for(it.session.close(), 20)
    assert await it.life == "no task succeeds there"
    assert len(it.channels) == 1


@over(timing=Timing(beat=0.05, parting=0.2))
async def test_the_end_does_not_wait_for_ever_for_a_line_that_is_down(it: Node) -> None:
    it.unreachable = 10_000
    it.session.break_link()
    await it.until(lambda: not it.session.linked)
    await asyncio.wait_for(it.session.close(), 20)
    it.life.cancel()
    await asyncio.wait([it.life])
    assert not it.agent.stopped.done(), "nothing reached it"


class Clumsy(MemoryPool):
    """Its handler fails at some messages."""

    def __init__(self, failures: int) -> None:
        super().__init__(attempts=1)
        self.left = failures
        self.received, self.dispatcher.runner.received = self.dispatcher.runner.received, self.hear  # type: ignore[method-assign]

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
    assert [pool.submit(abs, -number).result(30) for number in range(5)] == list(range(5))
    assert agent.links == 2
    pool.close()


def test_an_unexpected_error_that_repeats_loses_the_node_with_its_text() -> None:
    pool = Clumsy(99)
    agent = pool.add()
    with pytest.raises(
        NodeLost, match=r"abs \(task 1\) is lost with m0: .* without progress in between: KeyError: 'unexpected'"
    ):
        pool.submit(abs, -1).result(30)
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
        r"it returned tasks that were not recalled: \[1\]",
    ),
    "over no limit": (
        lambda agent: agent.say(Failed(1, 0.1, "timeout", "")),
        "it reports a timeout of task 1, which has no time limit",
    ),
    "gives up, unasked": (
        lambda agent: agent.say(Failed(1, 0.1, "cancelled", "")),
        "it cancelled task 1, which was not asked for",
    ),
    "a heartbeat with a number": (lambda agent: agent.say(Pong(0.0)), "Pong with a number"),
    "without a number": (_unnumbered, "Done without a number"),
    "has what was never sent": (_beyond, "acknowledges message 1000000, but only 2 were sent"),
    "garbage": (_garbage, "not a piece of this protocol"),
    "a stream twice": (
        lambda agent: [agent.say(StreamOpen(1, "/tmp/pymp-x/l")) for _ in range(2)],
        "stream 1 is opened twice",
    ),
    "nothing, again and again": (MemoryAgent.cut, "its link broke 5 times in a row as soon as it was made"),
}


@pytest.mark.slow
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
        pool.submit(abs, -1).result(30)
    pool.close()

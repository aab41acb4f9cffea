"""Streams take a bounded amount of memory, however slow one of their ends is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from skyward.core.interfaces import Channel
from skyward.core.nodes.timing import Timing
from skyward.core.protocol.messages import Message, StreamClose, StreamData, StreamOpen
from skyward.core.tasks import streams
from skyward.core.tasks.listening_sockets import Listeners
from skyward.core.tasks.streams import Streams
from skyward.transport.memory import MemoryChannel, pair
from tests.core.memory_agent import MemoryPool
from tests.lab.wait import eventually

PIECE = 64 * 1024


class Endless(MemoryChannel):
    """A listener that always has more to say."""

    def __init__(self) -> None:
        super().__init__()
        self.said = 0

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        self.said += PIECE
        return bytes(PIECE)


PATIENT = Timing(beat=0.02)  # the agent acknowledges with each beat


@pytest.fixture
def pool() -> Iterator[MemoryPool]:
    pool = MemoryPool(timing=PATIENT)
    yield pool
    pool.close()


def opened(pool: MemoryPool, channel: Channel | None) -> tuple[Streams, list[Message]]:
    """Stream 1 of a node leads to this channel, or to one that takes for ever to open; and what the node hears."""
    agent = pool.add()
    heard: list[Message] = []
    take = agent.take

    def hear(message: Message, buffers: list[bytearray]) -> None:
        heard.append(message)
        take(message, buffers)

    agent.take = hear  # type: ignore[method-assign]

    async def open_(_address: str) -> Channel:
        if channel is None:
            await asyncio.Event().wait()
        assert channel is not None
        return channel

    def begin() -> Streams:
        listeners = Listeners(open_)
        listeners._sent.add("/a/listener")
        made = Streams(pool.sessions[0], listeners)
        made.received(StreamOpen(1, "/a/listener"), [])
        return made

    return pool.do(begin), heard


def test_a_node_that_takes_nothing_is_sent_no_more(pool: MemoryPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_AHEAD", 2 << 20)
    channel = pool.do(Endless)
    made, _ = opened(pool, channel)
    (agent,), (session,) = pool.agents, pool.sessions
    eventually(lambda: channel.said > 20 << 20)  # it acknowledges, and so is sent more
    agent.mute = True  # as behind a line that stands
    eventually(lambda: session._outbox.size > 2 << 20)
    said = channel.said
    for _ in range(50):
        pool.do(lambda: None)
    assert channel.said <= said + PIECE
    assert session._outbox.size <= (2 << 20) + 2 * PIECE
    agent.mute = False
    pool.do(agent.flush)
    eventually(lambda: channel.said > said + (4 << 20))
    pool.do(made.close)


@pytest.mark.parametrize("opens", [True, False])
def test_a_listener_that_takes_nothing_loses_its_stream(
    pool: MemoryPool, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    monkeypatch.setattr(streams, "_BEHIND", 1 << 20)
    near, far = pool.do(pair)
    made, heard = opened(pool, near if opens else None)
    if opens:
        eventually(lambda: StreamData(1) in heard)
    for _ in range(50):
        pool.do(made.received, StreamData(1), [bytearray(PIECE)])
    (close,) = eventually(lambda: [message for message in heard if isinstance(message, StreamClose)])
    assert close.stream == 1
    assert "has not taken" in str(close.error)
    assert far._unread < 4 << 20
    assert not made._streams


def test_a_listener_that_takes_everything_may_be_sent_any_amount(
    pool: MemoryPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_BEHIND", 1 << 20)
    near, far = pool.do(pair)
    made, heard = opened(pool, near)
    eventually(lambda: StreamData(1) in heard)
    for _ in range(100):
        pool.do(made.received, StreamData(1), [bytearray(PIECE)])
        assert pool.io.start(far.read()).result(30)
    assert list(made._streams) == [1]
    pool.do(made.close)

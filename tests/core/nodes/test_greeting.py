"""An agent that does not answer a greeting as it should is refused, with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from skyward.core.errors import ProtocolError
from skyward.core.nodes.greeting import Greeting
from skyward.core.protocol.messages import Ping
from skyward.core.protocol.wire import Received, Role, Wire
from skyward.transport.memory import MemoryChannel, pair

Agent = Callable[[MemoryChannel], Awaitable[None]]


def greet(agent: Agent, secret: bytes = b"s", timeout: float = 20.0) -> tuple[Wire, list[Received]]:
    """Greet an agent; the wire, and what followed the answer."""

    async def main() -> tuple[Wire, list[Received]]:
        near, far = pair()
        serving = asyncio.ensure_future(agent(far))
        try:
            wire, welcome, more = await Greeting("session", secret, timeout).open(near, 7)
        finally:
            await serving
        assert welcome.received == 3
        assert welcome.facts == {"cores": 2}
        return wire, more

    return asyncio.run(main())


async def answer(channel: MemoryChannel) -> None:
    """Answer as an agent does that knows the secret."""
    wire = Wire(Role.AGENT, secret=b"s", nonce=b"w")
    (hello,) = wire.receive_data(await channel.read())
    assert (hello.message.session, hello.message.received) == ("session", 7)  # type: ignore[union-attr]
    wire.welcome(3, {"cores": 2})
    channel.write(wire.data_to_send())


def test_an_agent_that_knows_the_secret_is_answered_with_a_proof() -> None:
    wire, more = greet(answer)
    assert wire.is_open
    assert wire.has_data, "the proof has yet to be written"
    assert more == []


def test_an_agent_that_does_not_know_the_secret_is_refused() -> None:
    with pytest.raises(ProtocolError, match="does not know the pool's secret"):
        greet(answer, secret=b"another")


def test_a_channel_that_ends_is_no_answer() -> None:
    async def hang_up(channel: MemoryChannel) -> None:
        channel.close()

    with pytest.raises(EOFError, match="closed the connection"):
        greet(hang_up)


def test_silence_is_no_answer() -> None:
    async def ignore(channel: MemoryChannel) -> None:
        await channel.read()

    with pytest.raises(TimeoutError):
        greet(ignore, timeout=0.05)


def test_a_stripe_names_its_link_and_waits_until_it_has_joined() -> None:
    async def main() -> None:
        near, far = pair()
        greeting = Greeting("session", b"s", 20.0)
        link = Wire(Role.OWNER, secret=b"s", nonce=b"the link")
        joining = asyncio.ensure_future(greeting.join(near, link))
        wire = Wire(Role.AGENT, secret=b"s", nonce=b"w")
        (hello,) = wire.receive_data(await far.read())
        assert hello.message.link == b"the link"  # type: ignore[union-attr]
        wire.welcome(0, {})
        far.write(wire.data_to_send())
        wire.receive_data(await far.read())
        assert wire.is_open
        assert not joining.done()
        wire.send(Ping(0.0))
        far.write(wire.data_to_send())
        await joining

    asyncio.run(main())

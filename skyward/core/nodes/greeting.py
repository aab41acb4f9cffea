"""How the owner greets a node's agent on a new channel: each end proves that it knows the pool's secret."""

from __future__ import annotations

import asyncio
import os

from skyward.core.errors import ProtocolError
from skyward.core.interfaces import Channel
from skyward.core.protocol.messages import Welcome
from skyward.core.protocol.wire import Received, Role, Wire

__all__ = ["Greeting"]


class Greeting:
    """Greets the agent of one session, on each of its channels.

    Parameters
    ----------
    session
        The session's name, by which the agent recognizes it on a later link.
    secret
        The secret that both ends prove they know.
    timeout
        Seconds within which the agent must answer.
    """

    def __init__(self, session: str, secret: bytes, timeout: float) -> None:
        self._session = session
        self._secret = secret
        self._timeout = timeout

    async def open(self, channel: Channel, received: int) -> tuple[Wire, Welcome, list[Received]]:
        """Greet the agent on the first channel of a link. Returns the wire, the answer, and what followed it.

        What the wire has to send is not written yet: the owner's proof.

        Parameters
        ----------
        channel
            A new channel.
        received
            The last numbered message that has arrived in this session.

        Raises
        ------
        ProtocolError, TimeoutError, EOFError
            The agent answered wrongly, not in time, or closed the channel.
        """
        wire = self._wire()
        wire.hello(self._session, received)
        got = await self._answer(channel, wire)
        welcome = got[0].message
        if not isinstance(welcome, Welcome):
            raise ProtocolError(f"it began with {type(welcome).__name__}")
        wire.prove()
        return wire, welcome, got[1:]

    async def join(self, channel: Channel, link: Wire) -> None:
        """Greet the agent on a further channel of a link, which is a stripe of it from then on.

        Raises
        ------
        ProtocolError, TimeoutError, EOFError
            As `open`.
        """
        wire = self._wire()
        wire.hello(self._session, 0, link.name)
        await self._answer(channel, wire)
        wire.prove()
        await self._answer(channel, wire)  # a Pong: the agent has joined it to the link, and reads it so from here on

    def _wire(self) -> Wire:
        return Wire(Role.OWNER, secret=self._secret, nonce=os.urandom(16))

    async def _answer(self, channel: Channel, wire: Wire) -> list[Received]:
        """Write what the wire has to send, and return what arrives next: at least one message."""
        channel.write(wire.data_to_send())
        async with asyncio.timeout(self._timeout):
            got: list[Received] = []
            while not got:
                data = await channel.read()
                if not data:
                    raise EOFError("it closed the connection")
                got = wire.receive_data(data)
        return got

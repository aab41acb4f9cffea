"""One node, as the owner sees it: the wire over a channel, a heartbeat, and the same conversation after a broken link.

A session belongs to the event loop. It decides nothing about tasks: what arrives goes to its handler, what is given to
`send` goes out, once, in whatever way the links allow. A link that breaks is made again; messages that the agent had
not acknowledged are sent again then, and the agent does the same. Only an agent that is gone, or that can't be reached
for `Timing.give_up` seconds, ends the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from skyward.core.errors import LinkError, ProtocolError, ProvisioningError
from skyward.core.interfaces import Channel
from skyward.core.mailbox import Inbox, Outbox
from skyward.core.messages import Ack, Bye, Message, Ping, Pong, Setup, Welcome
from skyward.core.wire import Buffer, Filled, Received, Role, Wire

__all__ = ["Session", "SessionHandler", "Timing"]

_log = logging.getLogger("skyward.session")

_ACK_EVERY = 32  # messages
_ACK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds.

    Attributes
    ----------
    greeting
        The agent must answer the greeting within this.
    beat
        Between two heartbeats.
    silence
        Without a byte from the node, a link counts as broken.
    give_up
        Without a link, the node counts as lost.
    farewell
        At the end the agent must close within this.
    """

    greeting: float = 15.0
    beat: float = 2.0
    silence: float = 12.0
    give_up: float = 60.0
    farewell: float = 2.0


class SessionHandler(Protocol):
    """Who hears of what a node says. Called from the event loop; must not block."""

    def received(self, session: Session, message: Message, buffers: list[Filled]) -> None:
        """A message of the node that is not the session's own business."""
        ...


class Session:
    """The conversation with one node.

    Parameters
    ----------
    node
        Name of the node.
    connect
        Opens a channel to the node's agent. A `LinkError` from it means that the agent is gone; a `ProvisioningError`
        that the machine can't be reached, perhaps only now.
    secret
        What both ends prove to know.
    setup
        What the agent is told first.
    handler
        Who hears the node's messages.
    """

    def __init__(
        self,
        node: str,
        connect: Callable[[], Awaitable[Channel]],
        secret: bytes,
        setup: Setup,
        handler: SessionHandler,
        timing: Timing | None = None,
    ) -> None:
        self.node = node
        self.facts: dict[str, Any] = {}
        self.round_trip: float | None = None
        self._connect = connect
        self._secret = secret
        self._handler = handler
        self._timing = timing or Timing()
        self._name = os.urandom(8).hex()
        self._outbox = Outbox()
        self._inbox = Inbox()
        self._channel: Channel | None = None
        self._wire: Wire | None = None
        self._closing = False
        self._why: str | None = None  # why we ended it; None for the ordinary end
        self._scheduled = False
        self._draining: asyncio.Task[None] | None = None
        self._unlinked = asyncio.Event()  # set while there is no link
        self._heard = 0.0
        self._unacked = 0
        self._unacked_bytes = 0
        self.send(setup)

    def __repr__(self) -> str:
        return f"<Session {self.node}: {self._wire}, {self._outbox}, {self._inbox}>"

    @property
    def linked(self) -> bool:
        """Whether there is a link at the moment."""
        return self._channel is not None

    def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send a message, over whatever links it takes. Buffers must not change until the agent has them."""
        posted = self._outbox.post(message, buffers)
        if self._wire is not None and self._wire.is_open:
            self._wire.send(message, buffers, posted.number)
            self._flush_soon()

    async def run(self) -> str | None:
        """Keep up the conversation until `close` (None), or until the node is lost (the reason).

        Raises
        ------
        ProvisioningError, LinkError
            The first connection could not be made.
        """
        channel = await self._connect()
        try:
            await self._greet(channel)
        except (ProtocolError, TimeoutError) as error:
            self._drop(channel)
            raise LinkError(f"{self.node}: the agent did not answer the greeting: {_text(error)}") from error
        while True:
            try:
                reason = await self._talk(channel)
            except ProtocolError as error:
                reason = f"{error}"
            finally:
                self._drop(channel)
            if self._closing:
                return self._why
            _log.info("%s: link broken (%s), connecting again", self.node, reason)
            try:
                channel = await self._reconnect()
            except LinkError as error:
                return self._reason(f"{error}")

    def _reason(self, lost: str) -> str | None:
        """Why the conversation ended: our own reason if we ended it."""
        return self._why if self._closing else lost

    async def close(self) -> None:
        """Say goodbye and wait a little for the agent's end. Whatever still runs there is ended by the agent."""
        self._closing = True
        channel = self._channel
        if channel is None or self._wire is None or not self._wire.is_open:
            return
        self._wire.send(Bye())
        self._flush()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._unlinked.wait(), self._timing.farewell)

    def abandon(self, reason: str) -> None:
        """End the conversation as if the node were lost: `run` returns the reason."""
        self._closing, self._why = True, reason
        self.break_link()

    def break_link(self) -> None:
        """Drop the present link, as a fault would; the session makes another."""
        if self._channel is not None:
            self._channel.close()

    # --- links ---

    async def _reconnect(self) -> Channel:
        """Try until the agent answers, is known to be gone (LinkError), or too much time has passed (LinkError)."""
        loop = asyncio.get_running_loop()
        end, wait = loop.time() + self._timing.give_up, 0.02
        while True:
            try:
                channel = await self._connect()
            except ProvisioningError as error:
                problem: Exception = error
            else:
                try:
                    await self._greet(channel)
                    return channel
                except (ProtocolError, TimeoutError) as error:
                    self._drop(channel)
                    problem = error
            if self._closing or loop.time() + wait > end:
                text = f"{self.node} did not answer for {self._timing.give_up:g} s: {_text(problem)}"
                raise LinkError(text) from problem
            await asyncio.sleep(wait)
            wait = min(wait * 2, 2.0)

    async def _greet(self, channel: Channel) -> None:
        wire = Wire(Role.OWNER, secret=self._secret, nonce=os.urandom(16))
        wire.hello(self._name, self._inbox.received)
        channel.write(wire.data_to_send())
        async with asyncio.timeout(self._timing.greeting):
            got: list[Received] = []
            while not got:
                data = await channel.read()
                if not data:
                    raise ProtocolError("it closed the connection")
                got = wire.receive_data(data)
        welcome = got[0].message
        if not isinstance(welcome, Welcome):
            raise ProtocolError(f"it began with {type(welcome).__name__}")
        self.facts = welcome.facts
        self._outbox.acknowledge(welcome.received)
        wire.prove()
        for posted in self._outbox.kept():
            wire.send(posted.message, posted.buffers, posted.number)
        self._channel, self._wire = channel, wire
        self._unlinked.clear()
        for received in got[1:]:
            self._take(received)
        for _ in range(3):  # the first estimates of the round trip
            wire.send(Ping(asyncio.get_running_loop().time()))
        self._flush()

    async def _talk(self, channel: Channel) -> str:
        """Read until the link ends; the reason."""
        assert self._wire is not None
        wire, loop = self._wire, asyncio.get_running_loop()
        self._heard = loop.time()
        heart = asyncio.create_task(self._beat(channel, wire), name=f"skyward-heart-{self.node}")
        try:
            while data := await channel.read():
                self._heard = loop.time()
                for received in wire.receive_data(data):
                    self._take(received)
                if self._unacked >= _ACK_EVERY or self._unacked_bytes >= _ACK_BYTES:
                    self._acknowledge()
            return "the connection ended"
        finally:
            heart.cancel()

    async def _beat(self, channel: Channel, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._timing.beat)
            if loop.time() - self._heard > self._timing.silence:
                _log.warning("%s: silent for %.0f s", self.node, loop.time() - self._heard)
                channel.close()
                return
            if wire.is_open:
                wire.send(Ping(loop.time()))
                self._acknowledge()
                self._flush_soon()

    def _drop(self, channel: Channel) -> None:
        channel.close()
        self._channel = self._wire = None
        self._unlinked.set()
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None

    # --- messages ---

    def _take(self, received: Received) -> None:
        message = received.message
        if received.number:
            self._unacked += 1
            self._unacked_bytes += sum(map(len, received.buffers))
            if self._inbox.accept(received.number):
                self._handler.received(self, message, received.buffers)
        elif isinstance(message, Pong):
            sample = asyncio.get_running_loop().time() - message.stamp
            # The least of recent samples: a busy loop only ever makes them longer.
            self.round_trip = sample if self.round_trip is None else min(sample, self.round_trip * 1.2)
        elif isinstance(message, Ping):
            if self._wire is not None and self._wire.is_open:
                self._wire.send(Pong(message.stamp))
                self._flush_soon()
        elif isinstance(message, Ack):
            self._outbox.acknowledge(message.received)

    def _acknowledge(self) -> None:
        if self._unacked and self._wire is not None and self._wire.is_open:
            self._unacked = self._unacked_bytes = 0
            self._wire.send(Ack(self._inbox.received))
            self._flush_soon()

    # --- writing ---

    def _flush_soon(self) -> None:
        """Everything that is sent within one turn of the loop leaves together."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        channel, wire = self._channel, self._wire
        if channel is None or wire is None or self._draining is not None:
            return
        while wire.has_data:
            if channel.congested:
                self._draining = asyncio.create_task(self._drain(channel))
                return
            channel.write(wire.data_to_send())

    async def _drain(self, channel: Channel) -> None:
        await channel.drain()
        self._draining = None
        if channel is self._channel:
            self._flush()


def _text(error: Exception) -> str:
    return "time out" if isinstance(error, TimeoutError) else f"{error}"

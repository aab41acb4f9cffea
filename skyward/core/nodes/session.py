"""The owner's conversation with one node: it greets the agent, sends heartbeats, and survives broken links.

A session belongs to the event loop and decides nothing about tasks: what arrives goes to its handler, and what is given
to `send` is delivered once, however many links that takes. A link that breaks is made again; messages that the agent
had not acknowledged are then sent again, and the agent does the same. The session ends only if the agent is gone, can't
be reached for `Timing.give_up` seconds, or if links break again and again without progress (link_breaks.py).

An unexpected error here, or a message that the agent must not send, also breaks the link, so that either end repeats
what it was about. Nothing is lost without a line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Protocol

from skyward.core.errors import LinkError, ProtocolError, ProvisioningError
from skyward.core.gpus import Gpu
from skyward.core.interfaces import Channel
from skyward.core.nodes import node_reports
from skyward.core.nodes.agent_link import AgentLink, Stripes, describe
from skyward.core.nodes.greeting import Greeting
from skyward.core.nodes.link_breaks import Breaks, LinkProgress
from skyward.core.nodes.timing import Timing
from skyward.core.packages.lists import PackageLists
from skyward.core.protocol.mailbox import Inbox, Outbox
from skyward.core.protocol.messages import Ack, Bye, Gpus, Message, Ping, Pong, Ready, Setup
from skyward.core.protocol.wire import Buffer, Filled, Received

__all__ = ["Session", "SessionHandler"]

_log = logging.getLogger("skyward.session")


class SessionHandler(Protocol):
    """Receives what a node sends. Called from the event loop; must not block."""

    def received(self, session: Session, message: Message, buffers: list[Filled]) -> None:
        """Handle a message of the node that is not the session's own business.

        Parameters
        ----------
        session
            The session it arrived in.
        message, buffers
            The message, and its bulk.
        """
        ...


class Session:
    """The conversation with one node.

    Parameters
    ----------
    node
        Name of the node.
    connect
        Opens a channel to the node's agent. A `LinkError` from it means that the agent is gone; a `ProvisioningError`
        means that the machine can't be reached, perhaps only for now.
    secret
        The secret that both ends prove they know.
    setup
        The first message to the agent.
    handler
        Receives the node's messages, except `Ready` and `Gpus`.
    on_ready
        Called when the node's slots have started, or can't.
    timing
        Time limits; None: the defaults.
    stripes
        How a link gets further channels; None: never.
    patience
        Returns for how many seconds the node may be without a link; called again and again. None: `Timing.give_up`.
    """

    supply: Callable[[PackageLists], Awaitable[None]] | None = None
    """Installs packages on the node; None where nothing can be installed. Raises errors of ours."""
    gpus: tuple[Gpu, ...] = ()
    """Those of its slots, as they were before the first task."""
    heard = 0.0
    """When the node was last heard, by the loop's clock."""

    def __init__(
        self,
        node: str,
        connect: Callable[[], Awaitable[Channel]],
        secret: bytes,
        setup: Setup,
        handler: SessionHandler,
        on_ready: Callable[[Session, Ready], None],
        timing: Timing | None = None,
        stripes: Stripes | None = None,
        patience: Callable[[], float] | None = None,
    ) -> None:
        self.node = node
        self.shares = setup.shares
        self.facts: dict[str, Any] = {}
        self.round_trip: float | None = None
        self.barren = False
        """Whether it was abandoned because no task succeeds there."""
        self._connect = connect
        self._handler = handler
        self._on_ready = on_ready
        self._timing = timing or Timing()
        self._greeting = Greeting(os.urandom(8).hex(), secret, self._timing.greeting)
        self._patience = patience or (lambda: self._timing.give_up)
        self._stripes = stripes
        self._link: AgentLink | None = None
        self._linked_at = 0.0
        self._breaks = Breaks()
        self._fault: str | None = None  # the error for which the last link was broken, here or there
        self._outbox = Outbox()
        self._inbox = Inbox()
        self._closing = False
        self._deadline = math.inf  # for another link, once we are closing
        self._why: str | None = None  # why we ended it; None for the ordinary end
        self._distance: float | None = None  # minimum round trip over all links
        self._running: asyncio.Task[Any] | None = None
        self._acked = asyncio.Event()  # set when the agent has acknowledged something
        self.send(setup)

    def __repr__(self) -> str:
        return f"<Session {self.node}: {self._link}, {self._outbox}, {self._inbox}>"

    @property
    def linked(self) -> bool:
        """Whether there is a link at the moment."""
        return self._link is not None

    @property
    def linked_for(self) -> float:
        """Seconds for which there has been a link; 0 if there is none."""
        return asyncio.get_running_loop().time() - self._linked_at if self.linked else 0.0

    def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> int:
        """Send a message, now or on a later link. Returns its number. Buffers must not change until it has arrived."""
        link = self._link
        if link is not None and link.wire.is_open:
            link.flush_soon()
            return self._outbox.post(message, buffers, link.wire)
        return self._outbox.post(message, buffers)

    @property
    def acknowledged(self) -> int:
        """The agent has every message up to this number."""
        return self._outbox.acknowledged

    async def taken(self, number: int) -> None:
        """Wait until the agent has every message up to this number."""
        while self.acknowledged < number:
            self._acked.clear()
            await self._acked.wait()

    async def run(self) -> str | None:
        """Keep up the conversation until `close` (returns None), or until the node is lost (returns the reason).

        Raises
        ------
        ProvisioningError, LinkError
            The first connection could not be made.
        """
        self._running = asyncio.current_task()
        channel = await self._connect()
        try:
            link = await self._greet(channel)
        except (ProtocolError, TimeoutError, EOFError) as error:
            self._drop(channel)
            raise LinkError(f"{self.node}: the agent did not answer the greeting: {describe(error)}") from error
        while True:
            try:
                await self._talk(link)
            except Exception as error:
                self.failed(error)
            finally:
                self._drop(link.channel)
            if self._closing and link.has_parted:
                return self._why
            try:
                link = await self._resume()
            except LinkError as error:
                return self._why if self._closing else f"{error}"

    async def close(self) -> None:
        """Say goodbye and wait briefly for the agent's answer. It ends whatever still runs there.

        An agent that hears no goodbye waits for its owner to come back. So if the link is broken, or breaks now, there
        is time for another one.
        """
        self.abandon(self._why)
        if self._running is not None and self.facts:
            await asyncio.wait([self._running], timeout=self._timing.parting)

    def abandon(self, reason: str | None, *, barren: bool = False) -> None:
        """End the conversation as if the node were lost: `run` returns the reason. The agent ends, too.

        The goodbye is said on the current link; if there is none, on the next.

        Parameters
        ----------
        reason
            Why, for messages; None: the pool ends.
        barren
            Whether it is because no task succeeds there.
        """
        self.barren = self.barren or barren
        self._why = reason
        loop = asyncio.get_running_loop()
        again, self._closing = self._closing, True
        if not again:
            self._deadline = loop.time() + self._timing.parting
        if (link := self._link) is None:
            return
        if link.say_goodbye():
            # The agent hangs up; if we did, sshd might not pass the goodbye on, and the agent would wait for its owner.
            loop.call_later(self._timing.farewell, link.channel.close)
        elif not again:
            link.channel.close()

    def failed(self, error: Exception) -> None:
        """Break the link after an error that concerns this node, so that both ends repeat what it was about."""
        expected = isinstance(error, ProtocolError)
        self._fault = self._fault or (f"{error}" if expected else f"{type(error).__name__}: {error}")
        _log.error("%s: link broken after an error: %s", self.node, self._fault, exc_info=not expected and error)
        self.break_link()

    def break_link(self) -> None:
        """Drop the current link, as a fault would; the session makes another."""
        if self._link is not None:
            self._link.channel.close()

    # --- links ---

    def _drop(self, channel: Channel) -> None:
        """Close a channel, and the current link if there is one."""
        channel.close()
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _resume(self) -> AgentLink:
        """Make a link in place of one that broke; LinkError if that is impossible, or it would break again."""
        lasted = asyncio.get_running_loop().time() - self._linked_at
        _log.info("%s: link broken after %.1f s, reconnecting", self.node, lasted)
        if self._breaks.pause and not self._closing:
            await asyncio.sleep(self._breaks.pause)
        link = await self._reconnect()
        fault, self._fault = self._fault, None
        try:
            self._count_break(lasted, fault)
        except LinkError:
            self._drop(link.channel)
            raise
        return link

    def _count_break(self, lasted: float, fault: str | None) -> None:
        progress = LinkProgress(self._inbox.received, self._outbox.acknowledged, self._outbox.last)
        reason = fault or "the connection ended"
        why = self._breaks.count(progress, lasted, reason, fault=fault is not None)
        if why is not None:
            raise LinkError(why)

    async def _reconnect(self) -> AgentLink:
        """Retry until the agent answers; LinkError if it is known to be gone, or has not answered for too long."""
        loop = asyncio.get_running_loop()
        began, wait = loop.time(), 0.02

        def left() -> float:  # both limits may change meanwhile
            return min(began + self._patience(), self._deadline) - loop.time()

        while True:
            try:
                async with asyncio.timeout(max(left(), 1.0)):
                    channel = await self._connect()
            except (ProvisioningError, TimeoutError) as error:
                problem: Exception = error
            else:
                try:
                    return await self._greet(channel)
                except (TimeoutError, EOFError) as error:
                    self._drop(channel)
                    problem = error
                except Exception as error:
                    self._drop(channel)
                    self.failed(error)
                    fault, self._fault = self._fault, None
                    self._count_break(0.0, fault)
                    problem = error
            if wait > left():
                gone = loop.time() - began
                raise LinkError(f"{self.node} did not answer for {gone:.0f} s: {describe(problem)}") from problem
            await asyncio.sleep(wait)
            wait = min(wait * 2, 2.0)

    async def _greet(self, channel: Channel) -> AgentLink:
        """Greet the agent on a new channel, which becomes the current link."""
        wire, welcome, got = await self._greeting.open(channel, self._inbox.received)
        self.facts = welcome.facts
        self._outbox.acknowledge(welcome.received)
        self._acked.set()
        if fault := self.facts.get("fault"):
            self._fault = self._fault or f"its agent: {fault!s:.500}"
        self._outbox.repeat(wire)
        link = self._link = AgentLink(self.node, channel, wire, self.failed, self._stripes, self._greeting.join)
        link.distance = self._distance
        self._linked_at = asyncio.get_running_loop().time()
        if self._stripes is not None and self.facts.get("zstd") is True:
            link.compress()
        for received in got:
            self._take(received)
        for _ in range(3):  # for a first estimate of the round trip
            wire.send(Ping(asyncio.get_running_loop().time()))
        link.flush()
        if self._closing:  # while there was no link
            self.abandon(self._why)
        return link

    async def _talk(self, link: AgentLink) -> None:
        """Read until the link ends."""
        loop = asyncio.get_running_loop()
        self.heard = loop.time()
        link.start(self._beat(link))
        read, receive = link.channel.read, link.wire.receive_data
        while data := await read():
            self.heard = loop.time()
            for received in receive(data):
                self._take(received)
            if self._inbox.should_acknowledge:
                link.acknowledge(self._inbox)

    async def _beat(self, link: AgentLink) -> None:
        loop = asyncio.get_running_loop()
        while True:
            slept = loop.time()
            await asyncio.sleep(self._timing.beat)
            if (late := loop.time() - slept - self._timing.beat) > self._timing.beat:
                self.heard += late  # the loop was held up (a thread may hold Python's lock for long), and heard nobody
            if loop.time() - self.heard > self._timing.silence:
                _log.warning("%s: silent for %.0f s", self.node, loop.time() - self.heard)
                link.channel.close()
                return
            if link.wire.is_open:
                link.wire.send(Ping(loop.time()))
                link.acknowledge(self._inbox)
                link.flush_soon()

    # --- messages ---

    def _take(self, received: Received) -> None:
        if received.number:
            self._inbox.deliver(received, self._hand_over)
            return
        if self._closing and isinstance(received.message, Bye):
            return  # the wire knows
        handle = self._UNNUMBERED.get(type(received.message))
        if handle is None:
            raise ProtocolError(f"{type(received.message).__name__} without a number")
        handle(self, received.message)

    def _hand_over(self, received: Received) -> None:
        if isinstance(received.message, Ready):
            self._on_ready(self, received.message)
        elif isinstance(received.message, Gpus):
            self.gpus = node_reports.gpus(received.message.found)
        else:
            self._handler.received(self, received.message, received.buffers)

    def _on_ping(self, ping: Ping) -> None:
        link = self._link
        if link is not None and link.wire.is_open:
            link.wire.send(Pong(ping.stamp))
            link.flush_soon()

    def _on_pong(self, pong: Pong) -> None:
        now = asyncio.get_running_loop().time()
        if not self._linked_at <= pong.stamp <= now:
            raise ProtocolError("a Pong that answers no Ping")
        sample = now - pong.stamp
        # The minimum of recent samples: a busy loop only ever makes them longer.
        self.round_trip = sample if self.round_trip is None else min(sample, self.round_trip * 1.2)
        self._distance = sample if self._distance is None else min(self._distance, sample)
        if self._link is not None:
            self._link.distance = self._distance

    def _on_ack(self, ack: Ack) -> None:
        self._outbox.acknowledge(ack.received)
        self._acked.set()

    _UNNUMBERED: ClassVar[dict[type[Any], Callable[[Session, Any], None]]] = {
        Ack: _on_ack,
        Ping: _on_ping,
        Pong: _on_pong,
    }

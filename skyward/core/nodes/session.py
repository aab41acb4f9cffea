"""One node, as the owner sees it: the wire over a channel, a heartbeat, and the same conversation after a broken link.

A session belongs to the event loop. It decides nothing about tasks: what arrives goes to its handler, what is given to
`send` goes out, once, in whatever way the links allow. A link that breaks is made again; messages that the agent had
not acknowledged are sent again then, and the agent does the same. Only an agent that is gone, that can't be reached
for `Timing.give_up` seconds, or whose links break again and again for nothing (breaks.py) ends the session.

An error here that nobody expected, and what the agent may not say, break the link too: either end may have to say again
what it was about. Nothing is lost without a word in the log.

Where one channel can't fill a long line, a link gets further channels, its stripes, when much waits to be sent. They
carry large messages, and the first channel all others from then on. The loss of any of them is the loss of the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from skyward.core.errors import LinkError, ProtocolError, ProvisioningError
from skyward.core.guard import guarded, watched
from skyward.core.interfaces import Channel
from skyward.core.nodes.link_breaks import Breaks, Progress
from skyward.core.protocol.compression import Packer, RateMeter, available
from skyward.core.protocol.mailbox import Inbox, Outbox
from skyward.core.protocol.messages import Ack, Bye, Message, Ping, Pong, Ready, Setup, Welcome
from skyward.core.protocol.wire import Buffer, Filled, Received, Role, Wire
from skyward.core.visible import shown

__all__ = ["Session", "SessionHandler", "Stripes", "Timing", "link_patience"]

_log = logging.getLogger("skyward.session")

_TURN = 2 << 20  # bytes of large messages written before others have their turn in the event loop
_PART = 256 << 10  # of these, on one stripe: so much more than a full channel can it be given at a time


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
        Without a link, the node counts as lost, if it is the only one.
    give_up_alone
        The same while another node has been there all that time: then the line from here is not to blame.
    give_up_all
        The same while no node is there: then it probably is. Never beyond the agents' own patience.
    ready
        From when the agent is reached, its slots must have started within this.
    farewell
        At the end the agent must close within this.
    """

    greeting: float = 15.0
    beat: float = 2.0
    silence: float = 12.0
    give_up: float = 60.0
    give_up_alone: float = 20.0
    give_up_all: float = 300.0
    ready: float = 600.0
    farewell: float = 2.0


@dataclass(frozen=True, slots=True)
class Stripes:
    """Further channels of a link, for large messages, and when they are worth it.

    Attributes
    ----------
    open
        Opens one more channel to the agent of the present link, best over a connection of its own.
    count
        How many. One SSH channel carries as much as sshd's window of 2 MB in each round trip.
    distance
        Round trip in seconds from which one channel may be too slow.
    backlog
        Bytes that must wait: opening stripes takes some round trips, and so should what is left.
    """

    open: Callable[[], Awaitable[Channel]]
    count: int = 4
    distance: float = 0.005
    backlog: int = 4 << 20


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
        Receives the node's messages, except `Ready`.
    on_ready
        Called when the node's slots have started, or can't.
    stripes
        How a link gets stripes; None: never.
    patience
        Says for how many seconds it may be without a link; asked again and again. None: `Timing.give_up`.
    """

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
        self._secret = secret
        self._handler = handler
        self._on_ready = on_ready
        self._timing = timing or Timing()
        self._patience = patience or (lambda: self._timing.give_up)
        self._linked_at = 0.0
        self._breaks = Breaks()
        self._fault: str | None = None  # the error for which the last link was broken, here or there
        self._name = os.urandom(8).hex()
        self._outbox = Outbox()
        self._inbox = Inbox()
        self._channel: Channel | None = None
        self._wire: Wire | None = None
        self._closing = False
        self._why: str | None = None  # why we ended it; None for the ordinary end
        self._scheduled = False
        self._striping = stripes
        self._stripes: list[Channel] = []  # those of the present link
        self._may_widen = False
        self._distance = math.inf  # the least round trip ever: a busy loop does not make a node far
        self._rate_meter = RateMeter()  # of the present link
        self._written = 0  # bytes of large messages, over it
        self._draining: set[Channel] = set()
        self._chores: set[asyncio.Task[None]] = set()  # of the present link
        self._unlinked = asyncio.Event()  # set while there is no link
        self._acked = asyncio.Event()  # set when the agent has acknowledged something
        self._heard = 0.0
        self.send(setup)

    def __repr__(self) -> str:
        return f"<Session {self.node}: {self._wire}, {self._outbox}, {self._inbox}>"

    @property
    def linked(self) -> bool:
        """Whether there is a link at the moment."""
        return self._channel is not None

    @property
    def linked_for(self) -> float:
        """Seconds for which there has been a link; 0 when there is none."""
        return asyncio.get_running_loop().time() - self._linked_at if self.linked else 0.0

    def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> int:
        """Send a message over whatever links it takes; its number. Buffers must not change until the agent has them."""
        wire = self._wire
        if wire is not None and wire.is_open:
            self._flush_soon()
            return self._outbox.post(message, buffers, wire)
        return self._outbox.post(message, buffers)

    @property
    def acknowledged(self) -> int:
        """The agent has every message up to this number."""
        return self._outbox.acknowledged

    async def taken(self, number: int) -> None:
        """Wait until the agent has this message and all before it."""
        while self.acknowledged < number:
            self._acked.clear()
            await self._acked.wait()

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
        except (ProtocolError, TimeoutError, EOFError) as error:
            self._drop(channel)
            raise LinkError(f"{self.node}: the agent did not answer the greeting: {_text(error)}") from error
        while True:
            try:
                await self._talk(channel)
            except Exception as error:
                self.failed(error)
            finally:
                self._drop(channel)
            if self._closing:
                return self._why
            try:
                channel = await self._resume()
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

    def abandon(self, reason: str, *, barren: bool = False) -> None:
        """End the conversation as if the node were lost: `run` returns the reason. The agent need not stay."""
        self.barren = self.barren or barren
        self._closing, self._why = True, reason
        if self._wire is not None and self._wire.is_open:
            self._wire.send(Bye())
            self._flush()
        self.break_link()

    def failed(self, error: Exception) -> None:
        """Something about this node failed that should not: its link is broken, so that it is said again."""
        expected = isinstance(error, ProtocolError)
        self._fault = self._fault or (f"{error}" if expected else f"{type(error).__name__}: {error}")
        _log.error("%s: its link is broken for an error: %s", self.node, self._fault, exc_info=not expected and error)
        self.break_link()

    def break_link(self) -> None:
        """Drop the present link, as a fault would; the session makes another."""
        if self._channel is not None:
            self._channel.close()

    # --- links ---

    async def _resume(self) -> Channel:
        """A link in the place of one that broke; LinkError if there is none, or if it would break again."""
        lasted = asyncio.get_running_loop().time() - self._linked_at
        _log.info("%s: link broken after %.1f s, connecting again", self.node, lasted)
        if self._breaks.pause:
            await asyncio.sleep(self._breaks.pause)
        channel = await self._reconnect()
        fault, self._fault = self._fault, None
        try:
            self._count_break(lasted, fault)
        except LinkError:
            self._drop(channel)
            raise
        return channel

    def _count_break(self, lasted: float, fault: str | None) -> None:
        progress = Progress(self._inbox.received, self._outbox.acknowledged, self._outbox.last)
        reason = fault or "the connection ended"
        why = self._breaks.count(progress, lasted, reason, fault=fault is not None)
        if why is not None:
            raise LinkError(why)

    async def _reconnect(self) -> Channel:
        """Try until the agent answers, is known to be gone (LinkError), or too much time has passed (LinkError)."""
        loop = asyncio.get_running_loop()
        began, wait = loop.time(), 0.02
        while True:
            left = began + self._patience() - loop.time()
            try:
                async with asyncio.timeout(max(left, 1.0)):
                    channel = await self._connect()
            except (ProvisioningError, TimeoutError) as error:
                problem: Exception = error
            else:
                try:
                    await self._greet(channel)
                    return channel
                except (TimeoutError, EOFError) as error:
                    self._drop(channel)
                    problem = error
                except Exception as error:
                    self._drop(channel)
                    self.failed(error)
                    fault, self._fault = self._fault, None
                    self._count_break(0.0, fault)
                    problem = error
            gone = loop.time() - began
            if self._closing or gone + wait > self._patience():
                raise LinkError(f"{self.node} did not answer for {gone:.0f} s: {_text(problem)}") from problem
            await asyncio.sleep(wait)
            wait = min(wait * 2, 2.0)

    async def _answer(self, channel: Channel, wire: Wire) -> list[Received]:
        """What comes next; at least one message."""
        channel.write(wire.data_to_send())
        async with asyncio.timeout(self._timing.greeting):
            got: list[Received] = []
            while not got:
                data = await channel.read()
                if not data:
                    raise EOFError("it closed the connection")
                got = wire.receive_data(data)
        return got

    async def _greet(self, channel: Channel) -> None:
        wire = Wire(Role.OWNER, secret=self._secret, nonce=os.urandom(16))
        wire.hello(self._name, self._inbox.received)
        got = await self._answer(channel, wire)
        welcome = got[0].message
        if not isinstance(welcome, Welcome):
            raise ProtocolError(f"it began with {type(welcome).__name__}")
        self.facts = welcome.facts
        self._outbox.acknowledge(welcome.received)
        self._acked.set()
        if fault := self.facts.get("fault"):
            self._fault = self._fault or f"its agent: {fault!s:.500}"
        wire.prove()
        self._outbox.repeat(wire)
        self._channel, self._wire, self._may_widen = channel, wire, self._striping is not None
        self._linked_at = asyncio.get_running_loop().time()
        self._rate_meter, self._written = RateMeter(), 0
        if self._striping is not None and self.facts.get("zstd") is True and available():
            wire.packer, wire.packing_failed = Packer(self._rate_meter, time.perf_counter), self._sends_plain
        self._unlinked.clear()
        for received in got[1:]:
            self._take(received)
        for _ in range(3):  # the first estimates of the round trip
            wire.send(Ping(asyncio.get_running_loop().time()))
        self._flush()
        if self._closing:  # while the link was being made
            channel.close()

    def _sends_plain(self, error: Exception) -> None:
        _log.warning("%s: what goes there is not compressed any more, since that failed", self.node, exc_info=error)

    async def _talk(self, channel: Channel) -> None:
        """Read until the link ends."""
        assert self._wire is not None
        wire, loop = self._wire, asyncio.get_running_loop()
        self._heard = loop.time()
        self._chore(self._beat(channel, wire))
        while data := await channel.read():
            self._heard = loop.time()
            for received in wire.receive_data(data):
                self._take(received)
            if self._inbox.should_acknowledge:
                self._acknowledge()

    async def _beat(self, channel: Channel, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        while True:
            slept = loop.time()
            await asyncio.sleep(self._timing.beat)
            if (late := loop.time() - slept - self._timing.beat) > self._timing.beat:
                self._heard += (
                    late  # the loop was held up (one thread may hold Python's lock for long): it heard nobody
                )
            if loop.time() - self._heard > self._timing.silence:
                _log.warning("%s: silent for %.0f s", self.node, loop.time() - self._heard)
                channel.close()
                return
            if wire.is_open:
                wire.send(Ping(loop.time()))
                self._acknowledge()
                self._flush_soon()

    def _drop(self, channel: Channel) -> None:
        for each in (channel, *self._stripes):
            each.close()
        self._stripes.clear()
        self._channel = self._wire = None
        self._unlinked.set()
        for chore in self._chores:
            chore.cancel()
        self._draining.clear()

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something besides, while the present link lasts."""
        chore = asyncio.create_task(work, name=f"skyward-link-{self.node}")
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
        watched(chore, self.failed)

    # --- stripes ---

    def _widen_soon(self, channel: Channel, wire: Wire) -> None:
        """Large messages wait since the channel takes no more: get stripes if that is worth it."""
        stripes = self._striping
        if stripes is None or not self._may_widen or wire.large < stripes.backlog:
            return
        if stripes.distance <= self._distance < math.inf:
            self._may_widen = False
            self._chore(self._widen(stripes, channel, wire))

    async def _widen(self, stripes: Stripes, first: Channel, wire: Wire) -> None:
        """Open all stripes; the link is none the worse if the machine does not allow as many channels."""
        opening = [asyncio.ensure_future(stripes.open()) for _ in range(stripes.count)]
        try:
            channels = await asyncio.gather(*opening)
            await asyncio.gather(*(self._greet_as_stripe(channel, wire) for channel in channels))
        except (LinkError, TimeoutError, EOFError) as error:
            _log.info("%s: goes on with one channel: %s", self.node, _text(error))
            for done in await asyncio.gather(*opening, return_exceptions=True):
                if not isinstance(done, BaseException):
                    done.close()
            return
        self._stripes += channels
        for channel in channels:
            self._chore(self._watch(channel, first))
        self._flush_soon()

    async def _greet_as_stripe(self, channel: Channel, link: Wire) -> None:
        wire = Wire(Role.OWNER, secret=self._secret, nonce=os.urandom(16))
        wire.hello(self._name, 0, link.name)
        await self._answer(channel, wire)
        wire.prove()
        await self._answer(channel, wire)  # a Pong: the agent has joined it to the link, and reads it so from here on

    async def _watch(self, stripe: Channel, first: Channel) -> None:
        """The agent says nothing on a stripe: whatever comes there, and most of all its end, ends the link."""
        await stripe.read()
        first.close()

    # --- messages ---

    def _take(self, received: Received) -> None:
        if received.number:
            self._inbox.deliver(received, self._hand_over)
            return
        handle = self._UNNUMBERED.get(type(received.message))
        if handle is None:
            raise ProtocolError(f"{type(received.message).__name__} without a number")
        handle(self, received.message)

    def _hand_over(self, received: Received) -> None:
        if isinstance(received.message, Ready):
            self._on_ready(self, received.message)
        else:
            self._handler.received(self, received.message, received.buffers)

    def _on_ping(self, ping: Ping) -> None:
        if self._wire is not None and self._wire.is_open:
            self._wire.send(Pong(ping.stamp))
            self._flush_soon()

    def _on_pong(self, pong: Pong) -> None:
        now = asyncio.get_running_loop().time()
        if not self._linked_at <= pong.stamp <= now:
            raise ProtocolError("a Pong to no Ping")
        sample = now - pong.stamp
        # The minimum of recent samples: a busy loop only ever makes them longer.
        self.round_trip = sample if self.round_trip is None else min(sample, self.round_trip * 1.2)
        self._distance = min(self._distance, sample)

    def _on_ack(self, ack: Ack) -> None:
        self._outbox.acknowledge(ack.received)
        self._acked.set()

    _UNNUMBERED: ClassVar[dict[type[Any], Callable[[Session, Any], None]]] = {
        Ack: _on_ack,
        Ping: _on_ping,
        Pong: _on_pong,
    }

    def _acknowledge(self) -> None:
        if self._wire is not None and self._wire.is_open and (ack := self._inbox.acknowledgement()) is not None:
            self._wire.send(ack)
            self._flush_soon()

    # --- writing ---

    def _flush_soon(self) -> None:
        """Everything that is sent within one turn of the loop leaves together."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(guarded, self.failed, self._flush)

    def _flush(self) -> None:
        """Write what the channels take: with stripes, large messages go there, and all others on the first channel."""
        self._scheduled = False
        channel, wire = self._channel, self._wire
        if channel is None or wire is None:
            return
        if self._stripes:
            if wire.has_small:  # at once: were it to wait for room, the stripes would take that, again and again
                channel.write(wire.small_to_send())
            self._flush_large(wire)
            return
        while wire.has_small and not wire.has_large and self._takes(channel):  # the common case
            channel.write(wire.small_to_send())
        if wire.has_large:
            self._flush_all(channel, wire)

    def _flush_all(self, channel: Channel, wire: Wire) -> None:
        while wire.has_data and self._takes(channel):
            self._write(channel, wire.data_to_send())
        if wire.has_large:
            self._rate_meter.full(self._written, time.monotonic())
            self._widen_soon(channel, wire)
        else:
            self._rate_meter.idle()

    def _flush_large(self, wire: Wire) -> None:
        end = wire.large - _TURN
        for stripe in self._stripes:
            while wire.has_large and self._takes(stripe):
                if wire.large <= end:
                    self._rate_meter.idle()
                    self._flush_soon()
                    return
                self._write(stripe, wire.large_to_send(_PART))
        if wire.has_large:
            self._rate_meter.full(self._written, time.monotonic())
        else:
            self._rate_meter.idle()

    def _write(self, channel: Channel, parts: Sequence[bytes | memoryview]) -> None:
        self._written += sum(map(len, parts))
        channel.write(parts)

    def _takes(self, channel: Channel) -> bool:
        """Whether a channel can be given more now; if not, there is another flush as soon as it can."""
        if channel.congested and channel not in self._draining:
            self._draining.add(channel)
            self._chore(self._drain(channel))
        return channel not in self._draining

    async def _drain(self, channel: Channel) -> None:
        await channel.drain()
        self._draining.discard(channel)
        self._flush()


def link_patience(timing: Timing, orphan_timeout: float, others: Collection[float]) -> float:
    """For how many seconds a node may be without a link.

    Parameters
    ----------
    timing, orphan_timeout
        The pool's.
    others
        For how many seconds each of the other nodes has had a link.
    """
    if not others:
        return timing.give_up
    if any(seconds >= timing.give_up_alone for seconds in others):
        return timing.give_up_alone
    return max(timing.give_up, min(timing.give_up_all, orphan_timeout))


def _text(error: Exception) -> str:
    return "time out" if isinstance(error, TimeoutError) else shown(f"{error}")

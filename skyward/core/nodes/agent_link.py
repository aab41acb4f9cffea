"""One link to a node's agent: a wire over a channel, and further channels, its stripes, for large messages.

If one channel can't fill a long line, the link opens stripes once much is waiting to be sent. They carry large messages
then, and the first channel all others. Losing any of these channels means losing the link; session.py makes another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from skyward.core.errors import LinkError
from skyward.core.guard import guarded, watched
from skyward.core.interfaces import Channel
from skyward.core.protocol.compression import Packer, RateMeter
from skyward.core.protocol.mailbox import Inbox
from skyward.core.protocol.messages import Bye
from skyward.core.protocol.states import Role, State
from skyward.core.protocol.wire import Wire
from skyward.core.visible import shown

__all__ = ["AgentLink", "Stripes", "describe"]

_log = logging.getLogger("skyward.session")

_TURN = 2 << 20  # bytes of large messages written before others get their turn in the event loop
_PART = 256 << 10  # bytes of these given to a stripe at once, so this much more than a full channel would take


@dataclass(frozen=True, slots=True)
class Stripes:
    """Further channels of a link for large messages, and when they are worth opening.

    Attributes
    ----------
    open
        Opens one more channel to the agent of the current link, preferably over a connection of its own.
    count
        Number of stripes. One SSH channel carries one window of sshd's, 2 MB, per round trip.
    distance
        Round trip in seconds from which one channel may be too slow.
    backlog
        Bytes that must be waiting: opening stripes takes some round trips, and sending what is left should, too.
    """

    open: Callable[[], Awaitable[Channel]]
    count: int = 4
    distance: float = 0.005
    backlog: int = 4 << 20


def _now() -> float:
    """The loop's clock, which tests may set."""
    return asyncio.get_running_loop().time()


class AgentLink:
    """One link. Belongs to the event loop.

    Parameters
    ----------
    node
        Name of the node, for the log.
    channel, wire
        The first channel, on which both ends have greeted each other, and the wire over it.
    failed
        Called with an unexpected error in a callback or background task.
    stripes
        How to open further channels; None: never.
    join
        Greets the agent on a further channel.
    """

    def __init__(
        self,
        node: str,
        channel: Channel,
        wire: Wire,
        failed: Callable[[Exception], None],
        stripes: Stripes | None,
        join: Callable[[Channel, Wire], Awaitable[None]],
    ) -> None:
        self.node = node
        self.channel = channel
        self.wire = wire
        self.stripes: list[Channel] = []
        self.rate_meter = RateMeter()
        self.distance: float | None = None
        """Minimum round trip to the node, in seconds: a busy event loop does not make a node far."""
        self._failed = failed
        self._striping = stripes
        self._join = join
        self._may_widen = stripes is not None
        self._written = 0  # bytes of large messages
        self._closed = False
        self._scheduled = False
        self._draining: set[Channel] = set()
        self._chores: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<AgentLink {self.node}: {self.wire}, {len(self.stripes)} stripes>"

    def compress(self) -> None:
        """Compress pieces of large messages from now on, if that pays; the agent can decompress them."""
        self.wire.packer, self.wire.packing_failed = Packer(self.rate_meter, _now), self._sends_plain

    def _sends_plain(self, error: Exception) -> None:
        _log.warning("%s: compression failed; messages are sent uncompressed from now on", self.node, exc_info=error)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background for as long as the link lasts."""
        chore = asyncio.create_task(work, name=f"skyward-link-{self.node}")
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
        watched(chore, self._failed)

    def close(self) -> None:
        """Close all channels, and end what runs in the background. May be repeated."""
        self._closed = True
        for each in (self.channel, *self.stripes):
            each.close()
        self.stripes.clear()
        for chore in self._chores:
            chore.cancel()
        self._draining.clear()

    def say_goodbye(self) -> bool:
        """End the conversation for good if the link is open. Returns whether it was.

        It does not wait until the channel takes more: the link may be closed before that, and the agent would then wait
        for its owner to come back.
        """
        if not self.wire.is_open:
            return False
        self.wire.send(Bye())
        self.channel.write(self.wire.small_to_send())
        return True

    @property
    def has_parted(self) -> bool:
        """Whether the agent has answered the goodbye."""
        return self.wire.states[Role.AGENT] is State.CLOSED

    def acknowledge(self, inbox: Inbox) -> None:
        """Say how far everything has arrived, unless that has been said."""
        if self.wire.is_open and (ack := inbox.acknowledgement()) is not None:
            self.wire.send(ack)
            self.flush_soon()

    # --- writing ---

    def flush_soon(self) -> None:
        """Flush in the next turn of the loop, so that everything sent within one turn leaves together."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(guarded, self._failed, self.flush)

    def flush(self) -> None:
        """Write what the channels take: with stripes, large messages go there, and all others on the first channel."""
        self._scheduled = False
        channel, wire = self.channel, self.wire
        if self._closed:
            return
        if self.stripes:
            if wire.has_small:  # at once: if it waited for room, the stripes would take that room, again and again
                channel.write(wire.small_to_send())
            self._flush_large()
            return
        if wire.has_large:
            self._flush_all()
        elif wire.has_small and self._takes(channel):
            channel.write(wire.small_to_send())

    def _flush_all(self) -> None:
        wire = self.wire
        while wire.has_data and self._takes(self.channel):
            self._write(self.channel, wire.data_to_send())
        self._measure()
        if wire.has_large:
            self._widen_soon()

    def _flush_large(self) -> None:
        wire = self.wire
        end = wire.large - _TURN
        for stripe in self.stripes:
            while wire.has_large and self._takes(stripe):
                if wire.large <= end:
                    self.rate_meter.idle()
                    self.flush_soon()
                    return
                self._write(stripe, wire.large_to_send(_PART))
        self._measure()

    def _measure(self) -> None:
        if self.wire.has_large:
            self.rate_meter.full(self._written, _now())
        else:
            self.rate_meter.idle()

    def _write(self, channel: Channel, parts: Sequence[bytes | memoryview]) -> None:
        self._written += sum(map(len, parts))
        channel.write(parts)

    def _takes(self, channel: Channel) -> bool:
        """Whether a channel takes more now; if not, the link is flushed again as soon as it does."""
        if channel.congested and channel not in self._draining:
            self._draining.add(channel)
            self.start(self._drain(channel))
        return channel not in self._draining

    async def _drain(self, channel: Channel) -> None:
        await channel.drain()
        self._draining.discard(channel)
        self.flush()

    # --- stripes ---

    def _widen_soon(self) -> None:
        """Open stripes if that is worth it: large messages are waiting, and the channel takes no more."""
        stripes = self._striping
        if stripes is None or not self._may_widen or self.wire.large < stripes.backlog:
            return
        if self.distance is not None and self.distance >= stripes.distance:
            self._may_widen = False
            self.start(self._widen(stripes))

    async def _widen(self, stripes: Stripes) -> None:
        """Open all stripes; the link goes on as it is if the machine does not allow that many channels."""
        opening = [asyncio.ensure_future(stripes.open()) for _ in range(stripes.count)]
        try:
            channels = await asyncio.gather(*opening)
            await asyncio.gather(*(self._join(channel, self.wire) for channel in channels))
        except (LinkError, TimeoutError, EOFError) as error:
            _log.info("%s: no further channels: %s", self.node, describe(error))
            for opened in await asyncio.gather(*opening, return_exceptions=True):
                if not isinstance(opened, BaseException):
                    opened.close()
            return
        self.stripes += channels
        for channel in channels:
            self.start(self._watch(channel))
        self.flush_soon()

    async def _watch(self, stripe: Channel) -> None:
        """End the link when a stripe ends. The agent sends nothing on stripes, so anything else is wrong, too."""
        await stripe.read()
        self.channel.close()


def describe(error: Exception) -> str:
    """Return an error's text for a log line or a reason."""
    return "timeout" if isinstance(error, TimeoutError) else shown(f"{error}")

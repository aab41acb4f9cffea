"""What the agent keeps of its owner's session over any number of links: numbers, what is unacknowledged, back-pressure.

No socket is opened here; a `WireSocket` is handed in and taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skyward.core.errors import ProtocolError
from skyward.core.protocol.mailbox import Inbox, Outbox
from skyward.core.protocol.messages import Message, Ping, Pong
from skyward.core.protocol.wire import Buffer, Received
from skyward.worker.wire_socket import WireSocket

__all__ = ["OwnerSession"]

_LAG = 0.0005


class OwnerSession:
    """One owner's session.

    Parameters
    ----------
    name
        What the owner calls it; only the same may resume it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.outbox = Outbox()
        self.inbox = Inbox()
        self.link: WireSocket | None = None

    def __repr__(self) -> str:
        state = "connected" if self.link else "alone"
        return f"<OwnerSession {self.name!r} {state}, {self.outbox!r}, {self.inbox!r}>"

    def post(self, message: Message, buffers: Sequence[Buffer] = (), lazy: bool = False) -> int:
        """Send a numbered message, now or when the owner is back; returns its number.

        One that is `lazy` may wait for others: a write of several is cheaper, here and at the owner's.
        """
        link = self.link
        if link is None or link.closed:
            return self.outbox.post(message, buffers)
        number = self.outbox.post(message, buffers, link.wire)
        link.lag = _LAG if lazy else 0.0
        link.wake()
        return number

    def attach(self, link: WireSocket, received: int) -> None:
        """The owner has come (back) and has everything up to `received`; ProtocolError if that can't be."""
        self.outbox.acknowledge(received)
        self.link = link
        self.outbox.repeat(link.wire)
        link.wake()

    def take(self, received: Received, handle: Callable[[Received], object]) -> None:
        """Have a message handled if it is new; acknowledge, from time to time, what could be."""
        if not received.number:
            raise ProtocolError(f"{type(received.message).__name__} without a number")
        self.inbox.deliver(received, handle)
        if self.inbox.should_acknowledge:
            self._acknowledge()

    def answer(self, ping: Ping) -> None:
        """A heartbeat, and with it what has not been acknowledged."""
        if self.link is not None:
            self.link.send(Pong(ping.stamp))
            self._acknowledge()

    def _acknowledge(self) -> None:
        if self.link is not None and (ack := self.inbox.acknowledgement()) is not None:
            self.link.send(ack)

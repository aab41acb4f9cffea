"""The owner's session on the agent's side, across any number of connections: numbered and unacknowledged messages.

No socket is opened here: the agent sets and clears `OwnerSession.link`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skyward.core.errors import ProtocolError
from skyward.core.protocol.mailbox import Inbox, Outbox
from skyward.core.protocol.messages import Bye, Message, Ping, Pong
from skyward.core.protocol.states import Role, State
from skyward.core.protocol.wire import Buffer, Received
from skyward.worker.wire_socket import WireSocket

__all__ = ["OwnerSession"]

_LAG = 0.0005  # seconds that a lazy message may wait for others


class OwnerSession:
    """One owner's session.

    Parameters
    ----------
    name
        The owner's name for it; only a connection that names it may resume it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.outbox = Outbox()
        self.inbox = Inbox()
        self.link: WireSocket | None = None

    def __repr__(self) -> str:
        state = "connected" if self.link else "disconnected"
        return f"<OwnerSession {self.name!r} {state}, {self.outbox!r}, {self.inbox!r}>"

    def post(self, message: Message, buffers: Sequence[Buffer] = (), lazy: bool = False) -> int:
        """Send a numbered message, now or when the owner has reconnected; returns its number.

        Parameters
        ----------
        message, buffers
            What to send.
        lazy
            Whether it may wait a little for others: one write of several is cheaper at both ends.
        """
        link = self.link
        if link is None or link.closed:
            return self.outbox.post(message, buffers)
        number = self.outbox.post(message, buffers, link.wire)
        link.lag = _LAG if lazy else 0.0
        link.wake()
        return number

    def attach(self, link: WireSocket, received: int) -> None:
        """Use a new connection of the owner, which has everything up to `received`; ProtocolError if that can't be."""
        self.outbox.acknowledge(received)
        self.link = link
        self.outbox.repeat(link.wire)
        link.wake()

    def take(self, received: Received, handle: Callable[[Received], object]) -> None:
        """Pass a message to `handle` if it is new, and acknowledge what has arrived from time to time."""
        if not received.number:
            raise ProtocolError(f"{type(received.message).__name__} without a number")
        self.inbox.deliver(received, handle)
        if self.inbox.should_acknowledge:
            self._acknowledge()

    def answer(self, ping: Ping) -> None:
        """Answer a heartbeat, and acknowledge what has arrived."""
        if self.link is not None:
            self.link.send(Pong(ping.stamp))
            self._acknowledge()

    def part(self) -> None:
        """Close the connection; if the owner has said goodbye, acknowledge that first."""
        if self.link is None:
            return
        if self.link.wire.states[Role.OWNER] is State.CLOSED:
            self.link.send_last(Bye())
        self.link.close()

    def _acknowledge(self) -> None:
        if self.link is not None and (ack := self.inbox.acknowledgement()) is not None:
            self.link.send(ack)

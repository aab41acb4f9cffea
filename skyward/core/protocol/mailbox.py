"""Messages that survive a broken link: numbered, kept until acknowledged, sent again on the next link, accepted once.

Each end has one `Outbox` and one `Inbox` for a whole conversation, over any number of links. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from skyward.core.errors import ProtocolError
from skyward.core.protocol.messages import Ack, Message
from skyward.core.protocol.wire import Buffer, Received, Wire

__all__ = ["Inbox", "Outbox", "Posted", "Quota"]

_ACK_MESSAGES = 32
_ACK_BYTES = 1024 * 1024


class Posted(NamedTuple):
    """A numbered message that is kept until the peer has it."""

    number: int
    size: int
    """Bytes in the buffers."""
    message: Message
    buffers: Sequence[Buffer]


class Outbox:
    """Numbers messages and keeps each until the peer acknowledges it, over any number of links.

    A small message that was sent is kept as its encoded bytes. With many nodes, many messages are kept, each for a
    heartbeat, and Python's garbage collector would traverse them again and again; tuples of numbers and bytes it does
    not track.
    """

    def __init__(self) -> None:
        self._last = 0
        self._kept: deque[Posted | tuple[int, int, bytes]] = deque()
        self.size = 0
        """Bytes in the buffers of the messages kept."""

    def __repr__(self) -> str:
        return f"<Outbox {len(self._kept)} kept, {self.size:,} bytes, last is {self._last}>"

    def post(self, message: Message, buffers: Sequence[Buffer] = (), wire: Wire | None = None) -> int:
        """Number a message, send it if there is an open wire, and keep it. Returns the number.

        Parameters
        ----------
        message
            What to send.
        buffers
            Its bulk; they must not change until the peer has acknowledged them.
        wire
            The open wire to send it on; None keeps it for the next link.

        Raises
        ------
        ProtocolError
            The wire does not accept it. Then it is not kept either.
        """
        number, size = self._last + 1, sum(map(len, buffers))
        piece = None if wire is None else wire.send(message, buffers, number)
        self._kept.append(Posted(number, size, message, buffers) if piece is None else (number, size, piece))
        self._last = number
        self.size += size
        return number

    def acknowledge(self, received: int) -> None:
        """Drop what the peer has: every message up to number `received`."""
        if received > self._last:
            raise ProtocolError(f"the peer acknowledges message {received}, but only {self._last} were sent")
        while self._kept and self._kept[0][0] <= received:
            self.size -= self._kept.popleft()[1]

    @property
    def acknowledged(self) -> int:
        """The peer has every message up to this number."""
        return self._kept[0][0] - 1 if self._kept else self._last

    @property
    def last(self) -> int:
        """Number of the newest message."""
        return self._last

    def repeat(self, wire: Wire) -> None:
        """Send everything that is still kept again, on a new link."""
        for posted in self._kept:
            if isinstance(posted, Posted):
                wire.send(posted.message, posted.buffers, posted.number)
            else:
                wire.send_again(posted[2])


class Quota:
    """Counts the bytes of one kind of traffic that the peer has not acknowledged."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._sent: deque[tuple[int, int]] = deque()

    def __repr__(self) -> str:
        return f"<Quota {self.size:,} of {self.limit:,} bytes>"

    @property
    def full(self) -> bool:
        """Whether producing more of it should stop."""
        return self.size > self.limit

    def add(self, number: int, size: int) -> None:
        """Count the message with this number, which was sent."""
        self._sent.append((number, size))
        self.size += size

    def acknowledge(self, received: int) -> None:
        """Stop counting the messages up to this number, which have arrived."""
        while self._sent and self._sent[0][0] <= received:
            self.size -= self._sent.popleft()[1]


class Inbox:
    """Accepts each numbered message once, in whatever order they arrive, and decides when to acknowledge."""

    def __init__(self) -> None:
        self.received = 0
        """Every number up to this one has arrived."""
        self._early: set[int] = set()
        self._arrived = 0  # numbered messages since the last acknowledgement, repeated ones included
        self._arrived_bytes = 0

    def __repr__(self) -> str:
        return f"<Inbox received {self.received}, {len(self._early)} early>"

    def deliver(self, received: Received, handle: Callable[[Received], object]) -> None:
        """Pass a numbered message to `handle` unless it has been handled before.

        If `handle` raises, the message counts as not received, so it is handled when it arrives again on another link.
        """
        number = received.number
        self._arrived += 1
        self._arrived_bytes += sum(map(len, received.buffers))
        if number == self.received + 1 and not self._early:  # the common case: in order
            self.received = number
        elif not self.accept(number):
            return
        try:
            handle(received)
        except Exception:
            self.reject(number)
            raise

    @property
    def should_acknowledge(self) -> bool:
        """Whether enough has arrived to acknowledge it without waiting for the next heartbeat."""
        return self._arrived >= _ACK_MESSAGES or self._arrived_bytes >= _ACK_BYTES

    def acknowledgement(self) -> Ack | None:
        """The acknowledgement to send now; None if nothing has arrived since the last one."""
        if not self._arrived:
            return None
        self._arrived = self._arrived_bytes = 0
        return Ack(self.received)

    def accept(self, number: int) -> bool:
        """Whether this message is new."""
        if number <= self.received or number in self._early:
            return False
        self._early.add(number)
        while self.received + 1 in self._early:
            self.received += 1
            self._early.remove(self.received)
        return True

    def reject(self, number: int) -> None:
        """Forget that this message was accepted: it could not be handled, and is new when it arrives again."""
        if number <= self.received:
            self._early.update(range(number + 1, self.received + 1))
            self.received = number - 1
        else:
            self._early.discard(number)

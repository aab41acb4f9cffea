"""Messages that survive a broken link: numbered, kept until acknowledged, sent again on the next link, accepted once.

Pure. Both ends have one `Outbox` and one `Inbox` for a whole conversation, over any number of links.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from skyward.core.errors import ProtocolError
from skyward.core.messages import Message

__all__ = ["Inbox", "Outbox", "Posted"]

Buffer = bytes | bytearray | memoryview | mmap.mmap


class Posted(NamedTuple):
    """A numbered message that is kept until the peer has it."""

    number: int
    message: Message
    buffers: Sequence[Buffer]
    size: int
    """Bytes in the buffers."""


class Outbox:
    """Numbers messages and keeps each until the peer acknowledges it, over any number of links."""

    def __init__(self) -> None:
        self._last = 0
        self._kept: deque[Posted] = deque()
        self.size = 0
        """Bytes in the buffers of what is kept."""

    def __repr__(self) -> str:
        return f"<Outbox {len(self._kept)} kept, {self.size:,} bytes, last is {self._last}>"

    def post(self, message: Message, buffers: Sequence[Buffer] = ()) -> Posted:
        """Number a message and keep it."""
        self._last += 1
        size = sum(map(len, buffers))
        posted = Posted(self._last, message, buffers, size)
        self._kept.append(posted)
        self.size += size
        return posted

    def acknowledge(self, received: int) -> None:
        """Drop what the peer has: everything up to number `received`."""
        if received > self._last:
            raise ProtocolError(f"the peer acknowledges message {received}, but only {self._last} were sent")
        while self._kept and self._kept[0].number <= received:
            self.size -= self._kept.popleft().size

    def kept(self) -> list[Posted]:
        """What must be sent again on a new link, in order."""
        return list(self._kept)


class Inbox:
    """Accepts each numbered message once, in whatever order they come."""

    def __init__(self) -> None:
        self.received = 0
        """Every number up to this one has come."""
        self._early: set[int] = set()

    def __repr__(self) -> str:
        return f"<Inbox received {self.received}, {len(self._early)} early>"

    def accept(self, number: int) -> bool:
        """Whether this message is new. Number 0 means not numbered: always new."""
        if number == 0:
            return True
        if number <= self.received or number in self._early:
            return False
        if number == self.received + 1 and not self._early:  # the common case: in order
            self.received = number
            return True
        self._early.add(number)
        while self.received + 1 in self._early:
            self.received += 1
            self._early.remove(self.received)
        return True

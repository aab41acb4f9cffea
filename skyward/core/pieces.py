"""Large messages on their way: what is left of one that is sent, what has come of one that arrives, from which stream.

Pure; used by wire.py alone, which knows what a piece looks like.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Union

from skyward.core.errors import ProtocolError
from skyward.core.messages import Message
from skyward.core.packing import Sample
from skyward.core.pages import PAGED, Spares

__all__ = ["Buffer", "Filled", "Incoming", "Lane", "Limits", "Outgoing"]

Buffer = Union[bytes, bytearray, memoryview, mmap.mmap]
"""What can be sent."""

Filled = Union[bytearray, memoryview, mmap.mmap]
"""What arrives: a writable buffer; a large one begins at a page, so that arrays in it are aligned."""

_MAX_GAPS = 1024  # in a message that is arriving: each stripe is at another place of it


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes; what is larger is refused before memory is allocated.

    Attributes
    ----------
    piece
        Largest body of one piece that is sent. A message up to this size goes as one piece.
    prelude
        Largest prelude (envelope and buffer lengths) that is accepted.
    message
        Largest sum of the buffers of one message.
    open
        Largest sum over all messages that have begun and not ended.
    """

    piece: int = 256 * 1024
    prelude: int = 4 * 1024 * 1024
    message: int = 16 * 2**30
    open: int = 32 * 2**30


class Incoming:
    """A large message whose buffers are arriving."""

    __slots__ = ("buffers", "gaps", "key", "message", "missing", "number", "prelude", "size", "starts")

    def __init__(
        self, key: int, number: int, message: Message, sizes: Sequence[int], prelude: int, spares: Spares
    ) -> None:
        self.key = key
        self.number = number
        self.message = message
        self.prelude = prelude
        # Anonymous memory is taken only as it is filled, so a peer can't make us take what it does not send.
        self.buffers: list[Filled] = [bytearray(size) if size < PAGED else spares.take(size) for size in sizes]
        self.starts = [0, *accumulate(sizes)][:-1]
        self.size = self.missing = sum(sizes)
        self.gaps = [(0, self.size)]  # what no piece has been for

    def claim(self, at: int, count: int) -> None:
        """A piece for these bytes begins: no other may be for any of them."""
        for index, (start, end) in enumerate(self.gaps):
            if start <= at and at + count <= end and count:
                left = ((start, at), (at + count, end))
                self.gaps[index : index + 1] = [gap for gap in left if gap[0] < gap[1]]
                if len(self.gaps) <= _MAX_GAPS:
                    return
        raise ProtocolError(f"a piece of {count:,} bytes for message {self.key}, which does not want them at {at:,}")

    def fill(self, at: int, data: memoryview) -> None:
        """Put bytes where they belong; they have been claimed."""
        self.missing -= len(data)
        index = bisect_right(self.starts, at) - 1
        at -= self.starts[index]
        while len(data):
            target = self.buffers[index]
            count = min(len(target) - at, len(data))
            target[at : at + count] = data[:count]
            data = data[count:]
            index, at = index + 1, 0


class Outgoing:
    """A large message of which pieces have been sent, and the bytes that are left, from `at` on."""

    __slots__ = ("at", "key", "sample", "views")

    def __init__(self, key: int, views: list[memoryview]) -> None:
        self.key = key
        self.views = views
        self.at = 0
        self.sample: Sample | None = None  # how well it can be compressed, once that has been tried


class Lane:
    """One stream that comes in: where its reading stands."""

    __slots__ = ("at", "buffer", "into", "left", "wanted")

    def __init__(self) -> None:
        self.buffer = bytearray()  # a piece that has not arrived whole (never the body of DATA), or all that waits
        self.into: Incoming | None = None  # where the body of the present DATA piece goes
        self.at = 0  # place of its next byte
        self.left = 0  # bytes of that body still to come
        self.wanted: int | None = None  # the message whose OPEN this stream waits for

    def __repr__(self) -> str:
        return f"<Lane {'waits' if self.waits else 'open'}, {len(self.buffer)} bytes held>"

    @property
    def waits(self) -> bool:
        """Whether it must not be read further until other streams of the link have brought more."""
        return self.wanted is not None

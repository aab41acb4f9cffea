"""Large messages in flight: what is left to send of one, what has arrived of one, and the streams they arrive on.

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
from skyward.core.protocol.buffers import PAGED, BufferPool
from skyward.core.protocol.compression import Sample
from skyward.core.protocol.messages import Message

__all__ = ["Ahead", "Buffer", "Filled", "Incoming", "Lane", "Outgoing", "SizeLimits"]

Buffer = Union[bytes, bytearray, memoryview, mmap.mmap]
"""What can be sent."""

Filled = Union[bytearray, memoryview, mmap.mmap]
"""What arrives: a writable buffer; a large one is page-aligned, so arrays in it are aligned."""

_AHEAD = 64 << 20  # bytes allocated for data that has not arrived: what is in flight on other stripes, rounded up
_BLOCK = 2 << 20  # memory of large buffers is committed in pages, which are no larger than this
_MAX_GAPS = 1024  # in a message that is arriving: each stripe is at a different place in it


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Maximum sizes in bytes; anything larger is refused before memory is allocated.

    Attributes
    ----------
    piece
        Body of one piece. A message of up to this size is sent as one piece.
    prelude
        Prelude (envelope and buffer lengths).
    message
        Sum of the buffers of one message.
    open
        Sum over all messages that have begun and not ended.
    """

    piece: int = 256 * 1024
    prelude: int = 4 * 1024 * 1024
    message: int = 16 * 2**30
    open: int = 32 * 2**30


class Ahead:
    """Bounds the memory for all messages that are arriving by what has arrived of them.

    A peer announces the size of its buffers before it sends them, and may then send a byte of each. It can make us
    allocate no more than twice what it sends, plus `_AHEAD` bytes.

    Parameters
    ----------
    buffer_pool
        Where large buffers come from.
    """

    def __init__(self, buffer_pool: BufferPool) -> None:
        self._buffer_pool = buffer_pool
        self.arrived = 0
        self.allocated = 0

    def __repr__(self) -> str:
        return f"<Ahead: {self.allocated:,} bytes for {self.arrived:,}>"

    def count(self, size: int) -> None:
        """Count memory that is about to be allocated.

        Raises
        ------
        ProtocolError
            Too little has arrived for that much.
        """
        if self.allocated + size > _AHEAD + 2 * self.arrived:
            raise ProtocolError(
                f"buffers would take {self.allocated + size:,} bytes, but only {self.arrived:,} bytes have arrived"
            )
        self.allocated += size

    def room(self, size: int) -> Filled:
        """Allocate a buffer; from 2 MB on, it need not have been counted: its memory is committed as it is filled."""
        try:
            return bytearray(size) if size < PAGED else self._buffer_pool.take(size)
        except (MemoryError, OSError) as error:
            raise ProtocolError(f"no memory for a buffer of {size:,} bytes: {error}") from error


class Incoming:
    """A large message whose buffers are arriving.

    Parameters
    ----------
    key
        Identifies it among the large messages of its link.
    number, message
        From its envelope.
    sizes
        Of its buffers, in bytes.
    prelude
        Size of its prelude in bytes.
    ahead
        Bounds the memory for all of these.
    """

    __slots__ = (
        *("_ahead", "_allocated", "_begun", "_sizes", "_starts", "buffers", "gaps", "key", "message", "missing"),
        *("number", "prelude", "size"),
    )

    def __init__(
        self, key: int, number: int, message: Message, sizes: Sequence[int], prelude: int, ahead: Ahead
    ) -> None:
        self.key = key
        self.number = number
        self.message = message
        self.prelude = prelude
        self.buffers: list[Filled | None] = [None] * len(sizes)
        self._ahead = ahead
        self._allocated = 0
        self._begun: set[tuple[int, int]] = set()  # buffer and block in it, of large buffers
        self._sizes = sizes
        self._starts = [0, *accumulate(sizes)][:-1]
        self.size = self.missing = sum(sizes)
        self.gaps = [(0, self.size)]  # the ranges that no piece has claimed

    def claim(self, at: int, count: int) -> None:
        """Reserve these bytes for a piece that begins: no other piece may contain any of them."""
        for index, (start, end) in enumerate(self.gaps):
            if start <= at and at + count <= end and count:
                left = ((start, at), (at + count, end))
                self.gaps[index : index + 1] = [gap for gap in left if gap[0] < gap[1]]
                if len(self.gaps) <= _MAX_GAPS:
                    return
        raise ProtocolError(f"a piece of {count:,} bytes for message {self.key}, which has no gap for it at {at:,}")

    def fill(self, at: int, data: memoryview) -> None:
        """Put bytes in their place, which has been claimed."""
        self.missing -= len(data)
        self._ahead.arrived += len(data)
        index = bisect_right(self._starts, at) - 1
        at -= self._starts[index]
        while len(data):
            size, target = self._sizes[index], self.buffers[index]
            count = min(size - at, len(data))
            if target is None or size >= _BLOCK:
                target = self._room(index, at, count)
            target[at : at + count] = data[:count]
            data = data[count:]
            index, at = index + 1, 0

    def _room(self, index: int, at: int, count: int) -> Filled:
        """Return a buffer of which some bytes are about to be filled."""
        size, target = self._sizes[index], self.buffers[index]
        if size < _BLOCK:
            self._count(size)
        else:
            for block in range(at // _BLOCK, (at + count - 1) // _BLOCK + 1):
                if (index, block) not in self._begun:
                    self._count(min(_BLOCK, size - block * _BLOCK))
                    self._begun.add((index, block))
        if target is None:
            target = self.buffers[index] = self._ahead.room(size)
        return target

    def _count(self, size: int) -> None:
        self._ahead.count(size)
        self._allocated += size

    def whole(self) -> list[Filled]:
        """Return the buffers, once nothing is missing; their memory no longer counts here."""
        self._ahead.arrived -= self.size
        self._ahead.allocated -= self._allocated
        return [bytearray() if buffer is None else buffer for buffer in self.buffers]


class Outgoing:
    """A large message that is being sent: the bytes that are left, from `at` on."""

    __slots__ = ("at", "key", "sample", "views")

    def __init__(self, key: int, views: list[memoryview]) -> None:
        self.key = key
        self.views = views
        self.at = 0
        self.sample: Sample | None = None  # how well it compresses, once that has been tried


class Lane:
    """One incoming stream, and how far it has been read."""

    __slots__ = ("at", "buffer", "into", "left", "wanted")

    def __init__(self) -> None:
        self.buffer = bytearray()  # a piece that has not arrived whole (never the body of DATA), or all that waits
        self.into: Incoming | None = None  # where the body of the current DATA piece goes
        self.at = 0  # offset of its next byte
        self.left = 0  # bytes of that body still to come
        self.wanted: int | None = None  # the message whose OPEN this stream waits for

    def __repr__(self) -> str:
        return f"<Lane {'waits' if self.waits else 'open'}, {len(self.buffer)} bytes held>"

    @property
    def waits(self) -> bool:
        """Whether it must not be read on until more has arrived on other streams of the link."""
        return self.wanted is not None

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
from skyward.core.protocol.buffers import PAGED, BufferPool
from skyward.core.protocol.compression import Sample
from skyward.core.protocol.messages import Message

__all__ = ["Ahead", "Buffer", "Filled", "Incoming", "Lane", "Limits", "Outgoing"]

Buffer = Union[bytes, bytearray, memoryview, mmap.mmap]
"""What can be sent."""

Filled = Union[bytearray, memoryview, mmap.mmap]
"""What arrives: a writable buffer; a large one begins at a page, so that arrays in it are aligned."""

_AHEAD = 64 << 20  # bytes of memory for which nothing has come: what is on its way on other stripes, rounded up
_BLOCK = 2 << 20  # memory of large buffers is taken in pages, which are as large as this at most
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


class Ahead:
    """Memory for all messages that are arriving, against what has come of them.

    A peer says how large its buffers are before it sends them, and may send a byte of each. It makes us take no more
    than twice what it sends, and `_AHEAD` bytes.

    Parameters
    ----------
    buffer_pool
        Where large buffers are taken from.
    """

    def __init__(self, buffer_pool: BufferPool) -> None:
        self._buffer_pool = buffer_pool
        self.come = 0
        self.taken = 0

    def __repr__(self) -> str:
        return f"<Ahead: {self.taken:,} bytes for {self.come:,}>"

    def count(self, size: int) -> None:
        """So much memory is about to be taken.

        Raises
        ------
        ProtocolError
            Too little has come for that.
        """
        if self.taken + size > _AHEAD + 2 * self.come:
            raise ProtocolError(f"memory of {self.taken + size:,} bytes is wanted, but {self.come:,} bytes came for it")
        self.taken += size

    def room(self, size: int) -> Filled:
        """Memory for a buffer, which need not have been counted from 2 MB on: it is taken as it is filled."""
        try:
            return bytearray(size) if size < PAGED else self._buffer_pool.take(size)
        except (MemoryError, OSError) as error:
            raise ProtocolError(f"no memory for a buffer of {size:,} bytes: {error}") from error


class Incoming:
    """A large message whose buffers are arriving."""

    __slots__ = (
        *("_ahead", "_begun", "_sizes", "_starts", "_taken", "buffers", "gaps", "key", "message", "missing"),
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
        self._taken = 0
        self._begun: set[tuple[int, int]] = set()  # buffer and block in it, of large buffers
        self._sizes = sizes
        self._starts = [0, *accumulate(sizes)][:-1]
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
        self._ahead.come += len(data)
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
        """Memory of a buffer, of which some bytes are about to be filled."""
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
        self._taken += size

    def whole(self) -> list[Filled]:
        """The buffers, once nothing is missing; what becomes of them is not our concern any more."""
        self._ahead.come -= self.size
        self._ahead.taken -= self._taken
        return [bytearray() if buffer is None else buffer for buffer in self.buffers]


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

"""msgpack envelopes of messages, which are looked through before they are unpacked.

msgpack's decoder makes room for a list as soon as it reads how long the list says it is, and each of the lists in it
again: five bytes of a peer's could take megabytes here. Pure.
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from skyward.core.errors import ProtocolError

__all__ = ["unpack"]

_FEW = 1024  # bytes of which nothing worth a look can be made
_MAX_CONTAINERS = 20_000  # lists and maps in one envelope; an empty one takes 60 times the byte that it is
_LENGTH = {1: struct.Struct("!B"), 2: struct.Struct("!H"), 4: struct.Struct("!I")}


def unpack(envelope: memoryview) -> Any:
    """What an envelope holds. Takes memory in proportion to its size.

    Raises
    ------
    ProtocolError
        It says that it holds more than it does, or has too many lists.
    Exception
        What msgpack raises, which has no common base, when it is broken otherwise.
    """
    if len(envelope) > _FEW:
        _look_through(envelope)
    return msgpack.unpackb(envelope, strict_map_key=False, unicode_errors="surrogatepass")


def _look_through(data: memoryview) -> None:
    at, left, containers = 0, 1, 0  # `left`: values that have been announced and not been seen
    end = len(data)
    while left:
        if left > end - at:  # each takes a byte at least
            raise ProtocolError(f"an envelope of {end:,} bytes that announces more than it holds")
        head, children = data[at], 0
        at, left = at + 1, left - 1
        if head <= 0x7F or head >= 0xE0 or head in _BARE:
            continue
        if head <= 0x9F:
            children = (head & 0x0F) * (2 if head <= 0x8F else 1)
            containers += 1
        elif head <= 0xBF:
            at += head & 0x1F
        elif head in _FIXED:
            at += _FIXED[head]
        elif head in _SIZED and at + _SIZED[head][0] <= end:
            width, each, contains = _SIZED[head]
            (length,) = _LENGTH[width].unpack_from(data, at)
            at += width
            if contains:
                children = length * each
                containers += 1
            else:
                at += length
        else:
            raise ProtocolError(f"an envelope with what no message has: {head:#x} at byte {at - 1:,}")
        left += children
        if containers > _MAX_CONTAINERS:
            raise ProtocolError(f"an envelope of more than {_MAX_CONTAINERS:,} lists")
    if at > end:
        raise ProtocolError(f"an envelope of {end:,} bytes whose last value would have more")


_BARE = frozenset((0xC0, 0xC2, 0xC3))  # None, False, True
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}  # numbers
_SIZED = {  # bytes of the length, values for each of it, and whether these are values and not bytes
    0xC4: (1, 1, False), 0xC5: (2, 1, False), 0xC6: (4, 1, False),
    0xD9: (1, 1, False), 0xDA: (2, 1, False), 0xDB: (4, 1, False),
    0xDC: (2, 1, True), 0xDD: (4, 1, True), 0xDE: (2, 2, True), 0xDF: (4, 2, True),
}  # fmt: skip

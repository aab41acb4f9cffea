"""Messages to msgpack envelopes and back; what arrives is checked before and after it is decoded.

Before, since msgpack's decoder allocates a list as soon as it has read the list's declared length, and does so again
for each nested list: five bytes from a peer could allocate megabytes here. After, since a peer may say anything. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgpack

from skyward.core.errors import ProtocolError
from skyward.core.protocol.message_checks import is_sound
from skyward.core.protocol.messages import CODES, FIELDS, MESSAGES, Message

__all__ = ["decode", "encode", "unpack"]

_SMALL = 1024  # bytes; too few to declare anything worth checking
_MAX_CONTAINERS = 20_000  # lists and maps in one envelope; an empty one takes 60 times its one byte
_LENGTH = {1: struct.Struct("!B"), 2: struct.Struct("!H"), 4: struct.Struct("!I")}


# A name or a variable that is not UTF-8 has lone surrogates in Python, and travels as it is.
_pack: Callable[[object], bytes] = msgpack.Packer(autoreset=True, unicode_errors="surrogatepass").pack
_seen: tuple[set[tuple[type, ...]], ...] = tuple(set() for _ in MESSAGES)  # types of fields that were found correct


def unpack(envelope: memoryview) -> Any:
    """Decode msgpack, using memory in proportion to its size.

    Raises
    ------
    ProtocolError
        It declares more than it holds, or has too many lists.
    Exception
        Whatever msgpack raises for other malformed data; these errors have no common base class.
    """
    if len(envelope) > _SMALL:
        _check_lengths(envelope)
    return msgpack.unpackb(envelope, strict_map_key=False, unicode_errors="surrogatepass")


def encode(message: Message, number: int) -> bytes:
    """Encode a message and its number (0: not numbered)."""
    return _pack((CODES[type(message)], number, *message))


def decode(envelope: memoryview, buffers: int) -> tuple[int, Message]:
    """Decode an envelope into number and message, using memory in proportion to its size.

    Parameters
    ----------
    envelope
        The bytes that `encode` made at the other end.
    buffers
        How many buffers came with it.

    Raises
    ------
    ProtocolError
        It is not an envelope of this protocol, or the message in it makes no sense.
    """
    try:
        code, number, *fields = unpack(envelope)
        kind, correct, types = MESSAGES[code], _seen[code], tuple(map(type, fields))
    except ProtocolError:
        raise
    except Exception as error:  # msgpack's errors have no common base class, and garbage can raise any of them
        raise ProtocolError(f"not an envelope of this protocol: {error!r}") from error
    if type(code) is not int or type(number) is not int or code < 0 or number < 0:
        raise ProtocolError(f"not an envelope of this protocol: code {code!r:.50}, number {number!r:.50}")
    if types not in correct:
        wanted = FIELDS[code]
        if len(types) != len(wanted) or not all(t in allowed for t, allowed in zip(types, wanted, strict=True)):
            raise ProtocolError(f"not a {kind.__name__} of this protocol: {fields!r:.200}")
        correct.add(types)  # only a few combinations are allowed
    message: Message = kind(*fields)
    if not is_sound(message, buffers):
        raise ProtocolError(f"not a sensible {kind.__name__}: {fields!r:.200}, with {buffers} buffers")
    return number, message


def _check_lengths(data: memoryview) -> None:
    at, left, containers = 0, 1, 0  # `left`: values declared and not seen yet
    end = len(data)
    while left:
        if left > end - at:  # each takes at least one byte
            raise ProtocolError(f"an envelope of {end:,} bytes declares more than it holds")
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
            raise ProtocolError(f"an envelope with a type that no message uses: {head:#x} at byte {at - 1:,}")
        left += children
        if containers > _MAX_CONTAINERS:
            raise ProtocolError(f"an envelope of more than {_MAX_CONTAINERS:,} lists")
    if at > end:
        raise ProtocolError(f"an envelope of {end:,} bytes is cut short within its last value")


_BARE = frozenset((0xC0, 0xC2, 0xC3))  # None, False, True
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}  # numbers
_SIZED = {  # bytes of the length field, values per unit of length, and whether the content is values (else bytes)
    0xC4: (1, 1, False), 0xC5: (2, 1, False), 0xC6: (4, 1, False),
    0xD9: (1, 1, False), 0xDA: (2, 1, False), 0xDB: (4, 1, False),
    0xDC: (2, 1, True), 0xDD: (4, 1, True), 0xDE: (2, 2, True), 0xDF: (4, 2, True),
}  # fmt: skip

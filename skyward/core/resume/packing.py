"""A pickled result as one run of bytes: the sizes of pickle and buffers, then these, at multiples of 64. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import xxhash

__all__ = ["checksum", "pack", "unpack"]

_ALIGNED = 64  # as numpy likes its memory


def pack(parts: Sequence[Any]) -> list[Any]:
    """Return the pieces to be written one after another.

    Parameters
    ----------
    parts
        The pickle and its out-of-band buffers.
    """
    sizes = [memoryview(part).nbytes for part in parts]
    head = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    pieces: list[Any] = [head]
    end = len(head)
    for part, size in zip(parts, sizes, strict=True):
        pieces += (bytes(-end % _ALIGNED), part)
        end += -end % _ALIGNED + size
    return pieces


def unpack(data: bytearray) -> list[memoryview]:
    """Return the parts, which share the memory of what was read.

    Raises
    ------
    ValueError
        These are not bytes that `pack` has made.
    """
    try:
        (count,) = struct.unpack_from("<I", data)
        sizes = struct.unpack_from(f"<{count}Q", data, 4)
    except struct.error as error:
        raise ValueError(f"a stored result is cut off: {error}") from error
    view, end, parts = memoryview(data), 4 + 8 * count, []
    for size in sizes:
        start = end + -end % _ALIGNED
        end = start + size
        parts.append(view[start:end])
    if end != len(data) or not parts:
        raise ValueError(f"a stored result has {len(data)} bytes instead of {end}")
    return parts


def checksum(key: bytes, pieces: Sequence[Any]) -> bytes:
    """Return what shows whether a result is the one that was stored under a key."""
    state = xxhash.xxh3_128(key)
    for piece in pieces:
        state.update(piece)
    return state.digest()

"""Length-prefixed byte strings, used before two processes switch to the wire protocol, and records of a fixed size.

A frame is the length as u32, big-endian, followed by that many bytes. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

__all__ = ["Records", "frame", "read_frame", "split_frame"]

_LENGTH = struct.Struct("!I")
_MAX = 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """The frame that holds `data`."""
    return _LENGTH.pack(len(data)) + data


def read_frame(read: Callable[[int], bytes], limit: int = _MAX) -> bytes:
    """Read one frame, and not a byte beyond it: what follows may be for another reader.

    Parameters
    ----------
    read
        Returns up to the given number of bytes, and none at the end of the stream: ``socket.recv``, for example.
    limit
        Maximum length of the content, in bytes.

    Raises
    ------
    EOFError
        The stream ended before the frame did.
    ValueError
        The frame is longer than `limit`.
    """
    return _exactly(read, _checked(_exactly(read, _LENGTH.size), limit))


def split_frame(data: bytes | bytearray, limit: int = _MAX) -> bytes | None:
    """The content of the frame that `data` begins with; None while it has not arrived whole.

    Raises
    ------
    ValueError
        The frame is longer than `limit` bytes.
    """
    if len(data) < _LENGTH.size:
        return None
    end = _LENGTH.size + _checked(data, limit)
    return bytes(data[_LENGTH.size : end]) if len(data) >= end else None


class Records:
    """Cuts a stream into records. Some systems cut even short ones in two when they send, where buffers are full.

    Parameters
    ----------
    kind
        What each of them is.
    """

    def __init__(self, kind: struct.Struct) -> None:
        self._kind = kind
        self._partial = b""

    def __repr__(self) -> str:
        return f"<Records of {self._kind.size} bytes, {len(self._partial)} of the next>"

    def receive(self, data: bytes) -> list[tuple[Any, ...]]:
        """Take what has arrived; return the records that are whole by now."""
        data = self._partial + data
        whole = len(data) // self._kind.size * self._kind.size
        self._partial = data[whole:]
        return list(self._kind.iter_unpack(data[:whole]))


def _checked(data: bytes | bytearray, limit: int) -> int:
    (length,) = _LENGTH.unpack_from(data)
    if length > limit:
        raise ValueError(f"a frame of {length:,} bytes; at most {limit:,} are allowed")
    return int(length)


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := read(count - len(data))):
            raise EOFError(f"the stream ended after {len(data):,} of {count:,} bytes")
        data += more
    return data

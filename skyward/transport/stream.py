"""A Channel over an asyncio transport: what TCP and Unix sockets have in common."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Sequence
from typing import ClassVar, cast

from skyward.transport.buffered_channel import BufferedChannel

__all__ = ["StreamChannel"]

_WRITE_AHEAD = 1 << 20  # bytes that may wait in the transport before `congested`


class StreamChannel(BufferedChannel, asyncio.Protocol):
    """Bytes both ways over a socket that asyncio drives; implements `skyward.core.interfaces.Channel`."""

    READ_AHEAD: ClassVar[int] = 4 << 20

    def __init__(self) -> None:
        super().__init__()
        self._transport: asyncio.Transport | None = None
        self._full = False

    # --- asyncio's side ---

    data_received = BufferedChannel.feed_data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # a stream's: other loops' need not inherit from it
        self._transport.set_write_buffer_limits(high=_WRITE_AHEAD)

    def eof_received(self) -> bool:
        """Called by asyncio."""
        self.feed_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._transport = None
        self.feed_eof()

    def pause_writing(self) -> None:
        """Called by asyncio."""
        self._full = True

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._full = False
        self.relieved()

    def _pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    # --- Channel ---

    def write(self, buffers: Sequence[bytes | bytearray | memoryview | mmap.mmap]) -> None:
        """See `Channel.write`."""
        if self._transport is None or self._transport.is_closing():
            return
        for buffer in buffers:
            self._transport.write(memoryview(buffer))

    @property
    def congested(self) -> bool:
        """See `Channel.congested`."""
        return self._full and not self._ended

    def close(self) -> None:
        """See `Channel.close`."""
        self.feed_eof()
        if self._transport is not None:
            self._transport.close()

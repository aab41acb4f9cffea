"""A Channel over an asyncio transport: what tcp and bridged streams have in common."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Sequence
from typing import cast

__all__ = ["StreamChannel"]

_READ_AHEAD = 4 << 20  # bytes that may wait for `read` before the peer is held up
_WRITE_AHEAD = 1 << 20  # bytes that may wait in the transport before `congested`


class StreamChannel(asyncio.Protocol):
    """Bytes both ways over a socket that asyncio drives; implements `skyward.core.interfaces.Channel`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._paused = False
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # a stream's: other loops' need not inherit from it
        self._transport.set_write_buffer_limits(high=_WRITE_AHEAD)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._chunks.append(data)
        self._size += len(data)
        if self._size > _READ_AHEAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        """Called by asyncio."""
        self._ended = True
        self._wake_reader()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._ended = True
        self._transport = None
        self._wake_reader()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Called by asyncio."""
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Called by asyncio."""
        if self._writable is not None:
            if not self._writable.done():
                self._writable.set_result(None)
            self._writable = None

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # --- Channel ---

    async def read(self) -> bytes:
        """See `Channel.read`."""
        while not self._chunks and not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if not self._chunks:
            return b""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        return data

    def write(self, buffers: Sequence[bytes | bytearray | memoryview | mmap.mmap]) -> None:
        """See `Channel.write`."""
        if self._transport is None or self._transport.is_closing():
            return
        for buffer in buffers:
            self._transport.write(memoryview(buffer))

    async def drain(self) -> None:
        """See `Channel.drain`."""
        if self._writable is not None and not self._ended:
            await asyncio.shield(self._writable)

    @property
    def congested(self) -> bool:
        """See `Channel.congested`."""
        return self._writable is not None and not self._ended

    def close(self) -> None:
        """See `Channel.close`."""
        self._ended = True
        self._wake_reader()
        self.resume_writing()
        if self._transport is not None:
            self._transport.close()

"""The half of a channel that does not depend on its transport: a read buffer, and writers that wait for room.

Also a base class for links without a shell.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import ClassVar

from skyward.core.interfaces import Channel

__all__ = ["BufferedChannel", "ChannelLink"]


class BufferedChannel(ABC):
    """Base of the channels here; a subclass adds `write`, `close` and what is abstract (see `interfaces.Channel`).

    The subclass calls `feed_data` and `feed_eof` as bytes, or the end of the stream, arrive, and `relieved` whenever
    `congested` may have become false.
    """

    READ_AHEAD: ClassVar[int]
    """Bytes that may wait for `read` before the other end is paused."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._unread = 0  # bytes in them
        self._paused = False  # the other end has been asked to send no more
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        self._drainers: list[asyncio.Future[None]] = []

    async def read(self) -> bytes:
        """See `Channel.read`."""
        while not self._chunks and not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._unread = 0
        if self._paused:
            self._paused = False
            self._resume_reading()
        return data

    async def drain(self) -> None:
        """See `Channel.drain`."""
        while self.congested:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drainers.append(waiter)
            await waiter

    def feed_data(self, data: bytes) -> None:
        """Bytes have arrived."""
        if not data or self._ended:  # an empty packet is not the end of the stream, as `read` would report it
            return
        self._chunks.append(data)
        self._unread += len(data)
        if self._unread > self.READ_AHEAD and not self._paused:
            self._paused = True
            self._pause_reading()
        self._wake_reader()

    def feed_eof(self) -> None:
        """Nothing more will arrive: either end has closed the stream, or the connection is gone. May be repeated."""
        self._ended = True
        self._wake_reader()
        self.relieved()

    def relieved(self) -> None:
        """Wake those who wait in `drain`, unless the channel is still congested."""
        if not self.congested:
            drainers, self._drainers = self._drainers, []
            for waiter in drainers:
                if not waiter.done():
                    waiter.set_result(None)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    @property
    @abstractmethod
    def congested(self) -> bool:
        """See `Channel.congested`; false once the stream has ended."""

    @abstractmethod
    def _pause_reading(self) -> None:
        """Ask the other end to send no more for now."""

    @abstractmethod
    def _resume_reading(self) -> None:
        """Let the other end send again."""


class ChannelLink:
    """Base of links without a shell, which only carry bytes; a subclass adds `open_channel` (see `interfaces.Link`)."""

    shell: ClassVar[None] = None

    def __init__(self) -> None:
        self._channels: list[Channel] = []

    async def close(self) -> None:
        """See `Link.close`."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()

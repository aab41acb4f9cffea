"""Streams over an SSH connection, and what all of one connection share. No logins and no commands in here."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

import asyncssh

__all__ = ["PACKET", "WINDOW", "Line", "SSHChannel"]

WINDOW = 8 * 2**20  # bytes that the host may send ahead: 160 MB/s over a round trip of 50 ms
PACKET = 128 * 2**10
_UNREAD = 4 * 2**20  # bytes waiting for a reader after which the host is slowed down
_UNSENT = 256 * 2**10  # bytes waiting for the host's window after which a channel is congested
_QUEUED = 512 * 2**10  # bytes that the kernel may hold unsent: what a small message waits for, 10 ms at 50 MB/s
_FEW = 64 * 2**10  # buffers up to this sum are joined: one packet is cheaper than several
_IGNORE = 2  # the number of SSH_MSG_IGNORE (RFC 4250)
_FED = 64 * 2**10  # bytes that asyncssh is given at a time: two of sshd's packets

_Stream: TypeAlias = "asyncssh.SSHUNIXChannel[bytes] | asyncssh.SSHTCPChannel[bytes] | asyncssh.SSHClientChannel[bytes]"


def _make_lean(connection: asyncssh.SSHClientConnection) -> None:
    """Spare asyncssh what it need not do for each packet of a large transfer."""
    send, receive = connection.send_packet, connection.data_received

    def send_packet(kind: int, *parts: bytes, handler: Any = None) -> None:
        # An empty message ahead of each packet helps ciphers whose next block can be foreseen (CBC, RFC 4251 9.3.1).
        if kind != _IGNORE:
            send(kind, *parts, handler=handler)

    def data_received(data: bytes, datatype: Any = None) -> None:
        # With each packet that it takes, it copies all that is behind it twice.
        for start in range(0, len(data), _FED):
            receive(data[start : start + _FED], datatype)

    if "gcm" in str(connection.get_extra_info("send_cipher")):
        connection.send_packet = send_packet  # type: ignore[assignment]
    connection.data_received = data_received  # type: ignore[method-assign]


class Line:
    """What all channels of a connection share: when it takes no more, each of them is congested.

    asyncssh queues without a bound what the channels' windows allow; several would fill seconds of a slow line.

    Parameters
    ----------
    below
        That of the jump host through which the connection goes: what congests it congests all that is behind it.
    """

    def __init__(self, connection: asyncssh.SSHClientConnection, below: Line | None = None) -> None:
        self.channels: weakref.WeakSet[SSHChannel] = weakref.WeakSet()
        self._paused = False
        self._below = below
        self.above: weakref.WeakSet[Line] = weakref.WeakSet()
        if below is not None:
            below.above.add(self)
        sock = connection.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError, AttributeError):  # a tunnel through another connection has no socket
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _QUEUED)
        _make_lean(connection)
        # asyncio's transport calls these of its protocol, and asyncssh does nothing in them.
        connection.pause_writing = self._pause  # type: ignore[method-assign]
        connection.resume_writing = self._resume  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"<Line {'full' if self.full else 'free'}, {len(self.channels)} channels, {len(self.above)} behind it>"

    @property
    def full(self) -> bool:
        """Whether it takes no more for now."""
        return self._paused or (self._below is not None and self._below.full)

    def _pause(self) -> None:
        self._paused = True

    def _resume(self) -> None:
        self._paused = False
        self.relieved()

    def relieved(self) -> None:
        """It, or what is below it, takes more again."""
        for channel in list(self.channels):
            channel.relieved()
        for line in list(self.above):
            line.relieved()


class SSHChannel:
    """A stream over a connection. Bytes that arrive wait in a list until they are read."""

    def __init__(self, line: Line) -> None:
        self._line = line
        line.channels.add(self)
        self._channel: _Stream | None = None
        self._unread: deque[bytes] = deque()
        self._unread_size = 0
        self._slowed = False
        self._ended = False
        self._congested = False
        self._reader: asyncio.Future[None] | None = None
        self._drainers: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        state = "ended" if self._ended else "congested" if self._congested else "open"
        return f"<SSHChannel {state}, {self._unread_size} bytes unread>"

    @property
    def unix(self) -> asyncssh.SSHUNIXSession[bytes]:
        """The asyncssh session of a stream to a Unix socket."""
        return _UnixSession(self)

    @property
    def tcp(self) -> asyncssh.SSHTCPSession[bytes]:
        """The asyncssh session of a stream to a port."""
        return _TCPSession(self)

    @property
    def is_open(self) -> bool:
        """Whether it stands: it was opened, and neither side has ended it."""
        return self._channel is not None and not self._ended

    async def read(self) -> bytes:
        """The next bytes, as many as there are; ``b""`` at the end of the stream, also after an error of the link."""
        if not self._unread and not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread.clear()
        self._unread_size = 0
        if self._slowed and self._channel is not None:
            self._slowed = False
            self._channel.resume_reading()
        return data

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Queue bytes in order. Never blocks. After the stream ended it does nothing."""
        channel = self._channel
        if self._ended or channel is None or channel.is_closing():
            return
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        if len(views) > 1 and sum(view.nbytes for view in views) <= _FEW:
            channel.write(b"".join(views))
            return
        for view in views:
            channel.write(view)  # type: ignore[arg-type,unused-ignore]  # it copies any bytes-like object

    async def drain(self) -> None:
        """Wait until little enough is queued that writing more makes sense, or the stream has ended."""
        while self.congested:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drainers.append(waiter)
            await waiter

    @property
    def congested(self) -> bool:
        """Whether `drain` would wait."""
        return self._congested or (self._line.full and not self._ended)

    def close(self) -> None:
        """End the stream; what was queued is still sent where the link allows. May be repeated."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.close()
        self.ended()

    # What asyncssh tells

    def opened(self, channel: _Stream) -> None:
        """The stream stands."""
        self._channel = channel
        channel.set_write_buffer_limits(high=_UNSENT)

    def received(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._ended:
            return
        self._unread.append(data)
        self._unread_size += len(data)
        if self._unread_size > _UNREAD and not self._slowed and self._channel is not None:
            self._slowed = True
            self._channel.pause_reading()
        self._wake_reader()

    def congest(self, congested: bool) -> None:
        """The queue grew too long, or is short again."""
        self._congested = congested and not self._ended
        self.relieved()

    def relieved(self) -> None:
        """Perhaps not congested any more."""
        if not self.congested:
            drainers, self._drainers = self._drainers, []
            for waiter in drainers:
                if not waiter.done():
                    waiter.set_result(None)

    def ended(self) -> None:
        """The other side closed the stream, we did, or the connection is gone."""
        self._ended = True
        self.congest(False)
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class _Session:
    """Passes on what asyncssh tells a session."""

    def __init__(self, stream: SSHChannel) -> None:
        self._stream = stream

    def connection_made(self, chan: Any) -> None:
        self._stream.opened(chan)

    def data_received(self, data: bytes, datatype: Any) -> None:
        self._stream.received(data)

    def eof_received(self) -> bool:
        self._stream.close()  # half a stream is of no use here
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stream.ended()

    def pause_writing(self) -> None:
        self._stream.congest(True)

    def resume_writing(self) -> None:
        self._stream.congest(False)


class _UnixSession(_Session, asyncssh.SSHUNIXSession[bytes]):
    pass


class _TCPSession(_Session, asyncssh.SSHTCPSession[bytes]):
    pass

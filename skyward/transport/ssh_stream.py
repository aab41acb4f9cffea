"""Streams over an SSH connection, and the state that all streams of one connection share."""

from __future__ import annotations

import contextlib
import socket
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import asyncssh

from skyward.transport.asyncssh_hooks import spare_work, watch_writing
from skyward.transport.buffered_channel import BufferedChannel

__all__ = ["PACKET", "WINDOW", "Line", "SSHChannel", "StreamSession"]

WINDOW = 8 * 2**20  # bytes that the host may send in advance: 160 MB/s with a round trip of 50 ms
PACKET = 128 * 2**10
_UNSENT = 256 * 2**10  # bytes waiting for the host's window beyond which a channel is congested
_QUEUED = 512 * 2**10  # bytes that the kernel may hold unsent, which a small message waits for: 10 ms at 50 MB/s
_JOINED = 64 * 2**10  # buffers up to this total are joined: one packet is cheaper than several

_Stream: TypeAlias = "asyncssh.SSHUNIXChannel[bytes] | asyncssh.SSHTCPChannel[bytes] | asyncssh.SSHClientChannel[bytes]"


class Line:
    """What all channels of a connection share: when its socket takes no more, each of them is congested.

    asyncssh queues everything that the channels' windows allow; several channels would fill seconds of a slow line.

    Parameters
    ----------
    connection
        The connection.
    below
        The line of the jump host that the connection goes through: when it is congested, so is everything behind it.
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
            with contextlib.suppress(OSError, AttributeError):  # a tunnel has no socket of its own
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _QUEUED)
        spare_work(connection)
        watch_writing(connection, self._pause, self._resume)

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
        """Wake all channels: the connection, or the one below it, accepts more again."""
        for channel in list(self.channels):
            channel.relieved()
        for line in list(self.above):
            line.relieved()


class SSHChannel(BufferedChannel):
    """A stream over an SSH connection; implements `skyward.core.interfaces.Channel`."""

    READ_AHEAD: ClassVar[int] = 4 * 2**20

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line
        line.channels.add(self)
        self._channel: _Stream | None = None
        self._full = False  # the queue for the host's window is too long

    def __repr__(self) -> str:
        state = "ended" if self._ended else "congested" if self.congested else "open"
        return f"<SSHChannel {state}, {self._unread} bytes unread>"

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
        """Whether it was opened, and neither side has ended it."""
        return self._channel is not None and not self._ended

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """See `Channel.write`."""
        channel = self._channel
        if self._ended or channel is None or channel.is_closing():
            return
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        if len(views) > 1 and sum(view.nbytes for view in views) <= _JOINED:
            channel.write(b"".join(views))
            return
        for view in views:
            channel.write(view)  # type: ignore[arg-type,unused-ignore]  # it copies any bytes-like object

    @property
    def congested(self) -> bool:
        """See `Channel.congested`."""
        return (self._full or self._line.full) and not self._ended

    def close(self) -> None:
        """See `Channel.close`."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.close()
        self.feed_eof()

    # --- called by asyncssh's sessions ---

    def opened(self, channel: _Stream) -> None:
        """The stream is open."""
        self._channel = channel
        channel.set_write_buffer_limits(high=_UNSENT)

    def congest(self, congested: bool) -> None:
        """The queue has grown too long, or is short again."""
        self._full = congested
        self.relieved()

    def _pause_reading(self) -> None:
        if self._channel is not None:
            self._channel.pause_reading()

    def _resume_reading(self) -> None:
        if self._channel is not None:
            self._channel.resume_reading()


class StreamSession:
    """Passes the callbacks of an asyncssh session on to a channel."""

    def __init__(self, stream: SSHChannel) -> None:
        self._stream = stream

    def connection_made(self, chan: Any) -> None:
        """Called by asyncssh: the session is open."""
        self._stream.opened(chan)

    def data_received(self, data: bytes, datatype: Any) -> None:
        """Called by asyncssh."""
        self._stream.feed_data(data)

    def eof_received(self) -> bool:
        """Called by asyncssh: nothing more will arrive."""
        self._stream.close()  # half a stream is of no use here
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncssh: the session is closed."""
        self._stream.feed_eof()

    def pause_writing(self) -> None:
        """Called by asyncssh: too much is queued."""
        self._stream.congest(True)

    def resume_writing(self) -> None:
        """Called by asyncssh: little is queued again."""
        self._stream.congest(False)


class _UnixSession(StreamSession, asyncssh.SSHUNIXSession[bytes]):
    pass


class _TCPSession(StreamSession, asyncssh.SSHTCPSession[bytes]):
    pass
